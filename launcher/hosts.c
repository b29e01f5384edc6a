/* launcher/hosts.c: lists of hosts with their slots: "-H a:4,b:4" and host files, as mpirun reads them.
 *
 * A host that is named twice has the sum of its slots, as with mpirun. Slots that nobody says are 0 here; plan.c decides.
 */
#include "launcher.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Letters, digits and what stands in names and addresses: nothing that a shell on the way could take for more. */
static bool sound_name(const char *name, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        char c = name[i];
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == ':' ||
              (c == '-' && i > 0)))
            return false;
    }
    return size > 0 && size < sizeof ((td__named_host *)0)->name;
}

static bool slots_number(const char *text, size_t size, int *into)
{
    *into = 0;
    for (size_t i = 0; i < size; i++) {
        if (text[i] < '0' || text[i] > '9' || i > 4)
            return false;
        *into = 10 * *into + (text[i] - '0');
    }
    return *into >= 1 && *into <= TD_RANKS_MAX;
}

static bool add(td__hosts *hosts, const char *name, size_t size, int slots, bool said)
{
    for (int i = 0; i < hosts->count; i++)
        if (strlen(hosts->host[i].name) == size && memcmp(hosts->host[i].name, name, size) == 0) {
            int so_far = hosts->host[i].slots ? hosts->host[i].slots : 1;
            hosts->host[i].slots = so_far + (said ? slots : 1);
            return true;
        }
    td__named_host *grown = realloc(hosts->host, (size_t)(hosts->count + 1) * sizeof *grown);
    if (!grown)
        return false;
    hosts->host = grown;
    td__named_host *h = &hosts->host[hosts->count++];
    *h = (td__named_host){ .slots = said ? slots : 0 };
    memcpy(h->name, name, size);
    return true;
}

/* "name" or "name:slots"; a name with several colons is an address of the newer kind and stands in brackets. */
static bool add_word(td__hosts *hosts, const char *word, size_t size)
{
    const char *name = word, *end = memrchr(word, ':', size);
    size_t length = end ? (size_t)(end - word) : size;
    int slots = 0;
    if (size > 2 && word[0] == '[') {
        const char *close = memchr(word, ']', size);
        if (!close || (close + 1 != word + size && close[1] != ':'))
            return false;
        name = word + 1;
        length = (size_t)(close - name);
        end = close + 1 == word + size ? NULL : close + 1;
    }
    if (end && !slots_number(end + 1, (size_t)(word + size - end - 1), &slots))
        return false;
    return sound_name(name, length) && add(hosts, name, length, slots, end != NULL);
}

int td__hosts_parse(td__hosts *hosts, const char *option, const char *list)
{
    for (const char *p = list;; p++) {
        size_t n = strcspn(p, ",");
        if (!add_word(hosts, p, n))
            return td__usage("run", "%s is \"%.200s\": expected hosts with their slots, as in a:4,b:4", option, list);
        p += n;
        if (!*p)
            return 0;
    }
}

/* "host", "host:4", "host slots=4"; the rest of a line after '#' is a remark. */
static bool add_line(td__hosts *hosts, char *line)
{
    line[strcspn(line, "#\r\n")] = '\0';
    char *rest = line, *name = NULL, *word;
    int slots = 0, number = 0;
    while ((word = strsep(&rest, " \t"))) {
        if (!*word)
            continue;
        if (!name)
            name = word;
        else if (strncmp(word, "slots=", 6) != 0 || slots || !slots_number(word + 6, strlen(word + 6), &slots))
            return false;
        number++;
    }
    if (number == 0)
        return true;
    if (slots)
        return sound_name(name, strlen(name)) && add(hosts, name, strlen(name), slots, true);
    return add_word(hosts, name, strlen(name));
}

int td__hosts_read(td__hosts *hosts, const char *option, const char *path)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return td__usage("run", "%s is \"%.200s\": %s", option, path, strerror(errno));
    char *line = NULL;
    size_t room = 0;
    int number = 0, status = 0, before = hosts->count;
    while (status == 0 && getline(&line, &room, f) >= 0) {
        char shown[128];
        number++;
        snprintf(shown, sizeof shown, "%.*s", (int)strcspn(line, "\r\n"), line);
        if (!add_line(hosts, line))
            status = td__usage("run", "%s: line %d is \"%s\": expected HOST slots=N", path, number, shown);
    }
    if (status == 0 && hosts->count == before)
        status = td__usage("run", "%s: there is no host in it", path);
    free(line);
    fclose(f);
    return status;
}
