/* base/key.c: the user's own key, from which jobs without our launcher derive their secret. See meet.h.
 *
 * A batch system starts ranks on several hosts and gives them nothing that strangers do not know, too. What only the user's own processes can
 * read is a file in the home folder: so it must be there, be the user's, and be shut to all others, or it is not used.
 */
#include "meet.h"
#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { DIGITS = 64 };

TD_PRINTF(3, 4) static int complain(char *error, size_t size, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(error, size, format, args);
    va_end(args);
    return TD_ERR_LAUNCH;
}

int td__key_path(char *into, size_t size, char *error, size_t error_size)
{
    const char *said = td__env(TD_ENV_KEY_FILE), *home = td__getenv("HOME");
    struct passwd *user = said || (home && *home) ? NULL : getpwuid(geteuid());
    if (user)
        home = user->pw_dir;
    if (!said && !(home && *home))
        return complain(error, error_size, "there is no home folder for a key file: set TANDEM_KEY_FILE");
    int n = said ? snprintf(into, size, "%s", said) : snprintf(into, size, "%s/.tandem/key", home);
    return n > 0 && (size_t)n < size ? 0 : complain(error, error_size, "the key file's path has %d characters: expected less than %zu", n, size);
}

/* ---- reading ------------------------------------------------------------------------------------------------------------- */

static bool from_hex(const char *text, size_t length, unsigned char key[32])
{
    size_t n = 0;
    return length == DIGITS && sodium_hex2bin(key, 32, text, length, NULL, &n, NULL) == 0 && n == 32;
}

static int check_file(const char *path, int fd, char *error, size_t size)
{
    struct stat s;
    if (fstat(fd, &s) != 0 || !S_ISREG(s.st_mode))
        return complain(error, size, "the key file %s is no file", path);
    if (s.st_uid != geteuid())
        return complain(error, size, "the key file %s belongs to user %lu, expected %lu: `tandem env --make-key` makes one of your own", path,
                        (unsigned long)s.st_uid, (unsigned long)geteuid());
    if (s.st_mode & 077)
        return complain(error, size, "the key file %s has the permissions %04o, expected 0600: others may know it; remove it, and "
                        "`tandem env --make-key` makes a new one", path, (unsigned)(s.st_mode & 07777));
    return 0;
}

static int read_file(unsigned char key[32], char *error, size_t size)
{
    char path[1024], text[DIGITS + 3];
    int code = td__key_path(path, sizeof path, error, size);
    if (code)
        return code;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return complain(error, size, "the key file %s %s: `tandem env --make-key` makes it, and it must be the same on all hosts", path,
                        errno == ENOENT ? "is missing" : strerror(errno));
    code = check_file(path, fd, error, size);
    ssize_t n = code ? 0 : read(fd, text, sizeof text);
    close(fd);
    if (code)
        return code;
    if (n > 0 && text[n - 1] == '\n')
        n--;
    if (n < 0 || !from_hex(text, (size_t)n, key))
        code = complain(error, size, "the key file %s does not hold 64 hexadecimal digits: remove it, and `tandem env --make-key` makes a new one", path);
    explicit_bzero(text, sizeof text);
    return code;
}

int td__key_secret(const char *job, unsigned char secret[32], char *error, size_t error_size)
{
    static const char label[] = "tandem job\n";
    unsigned char key[32];
    const char *said = td__env(TD_ENV_SECRET);
    if (sodium_init() < 0)
        return complain(error, error_size, "libsodium cannot start");
    int code = 0;
    if (said && !from_hex(said, strlen(said), key))
        code = complain(error, error_size, "TANDEM_SECRET has %zu characters or others than 0-9 a-f: expected 64 hexadecimal digits", strlen(said));
    else if (!said)
        code = read_file(key, error, error_size);
    if (code)
        return code;
    crypto_auth_hmacsha512256_state state;
    crypto_auth_hmacsha512256_init(&state, key, sizeof key);
    crypto_auth_hmacsha512256_update(&state, (const unsigned char *)label, sizeof label);
    crypto_auth_hmacsha512256_update(&state, (const unsigned char *)job, strlen(job));
    crypto_auth_hmacsha512256_final(&state, secret);
    explicit_bzero(key, sizeof key);
    return 0;
}

/* ---- making ---------------------------------------------------------------------------------------------------------------- */

static int make_folder(const char *path, char *error, size_t size)
{
    char folder[1024];
    snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (!slash || slash == folder)
        return 0;
    *slash = '\0';
    if (mkdir(folder, 0700) == 0 || errno == EEXIST)
        return 0;
    return complain(error, size, "the folder %s cannot be made: %s", folder, strerror(errno));
}

/* Written whole under another name, then given its own if nothing has that: two at the same time cannot mix, nothing is replaced. */
int td__key_make(char *path, size_t size, char *error, size_t error_size)
{
    unsigned char key[32];
    char text[DIGITS + 2], other[1100];
    if (sodium_init() < 0)
        return complain(error, error_size, "libsodium cannot start");
    int code = td__key_path(path, size, error, error_size);
    code = code ? code : make_folder(path, error, error_size);
    if (code)
        return code;
    snprintf(other, sizeof other, "%s.XXXXXX", path);
    int fd = mkostemp(other, O_CLOEXEC);       /* 0600 */
    if (fd < 0)
        return complain(error, error_size, "%s cannot be made: %s", path, strerror(errno));
    randombytes_buf(key, sizeof key);
    sodium_bin2hex(text, sizeof text, key, sizeof key);
    text[DIGITS] = '\n';
    bool written = write(fd, text, DIGITS + 1) == DIGITS + 1 && fsync(fd) == 0;
    int why = errno;
    close(fd);
    if (written && link(other, path) != 0) {
        why = errno;
        written = false;
    }
    unlink(other);
    explicit_bzero(key, sizeof key);
    explicit_bzero(text, sizeof text);
    if (written)
        return 0;
    if (why == EEXIST)
        return complain(error, error_size, "%s is there already and stays as it is", path);
    return complain(error, error_size, "%s cannot be written: %s", path, strerror(why));
}
