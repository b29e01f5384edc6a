/* tests/launcher/machine.h: machines with GPUs and network devices that nobody has here. hwloc makes the processors from its own one-line
 * description; devices are written into the XML that it exports, which is then read back. A device list is words "NODE:BUS PARTS":
 *
 *     "0:10=gn 1:80=ge m:c0=c"    at NUMA node 0 a PCIe switch on bus 0x10 with a GPU and an InfiniBand device, at node 1 one with a GPU and an
 *                                  Ethernet device, somewhere in the machine one with a GPU as hwloc's own CUDA part would show it
 *
 * g GPU, c GPU with an OS device "cudaN", n InfiniBand "mlx5_N", d one whose port is down, e Ethernet "ethN", v a display adapter of another make.
 * The devices of a switch lie on the buses after its own. Include it after <cmocka.h>.
 */
#ifndef MACHINE_H
#define MACHINE_H
#include <hwloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int machine_gp, machine_count[128];

static void machine_device(FILE *into, char part, int bus)
{
    const char *type = part == 'g' || part == 'c' ? "0302 [10de:2330]" : part == 'v' ? "0300 [1a03:2000]" : part == 'e' ? "0200 [8086:1572]" : "0207 [15b3:1021]";
    int number = machine_count[part == 'd' ? 'n' : part == 'c' ? 'g' : (int)part]++;
    fprintf(into, "<object type=\"PCIDev\" gp_index=\"%d\" pci_busid=\"0000:%02x:00.0\" pci_type=\"%s [0000:0000] a1\" pci_link_speed=\"63.0\">", machine_gp++, bus, type);
    if (part == 'c')
        fprintf(into, "<object type=\"OSDev\" gp_index=\"%d\" name=\"cuda%d\" subtype=\"CUDA\" osdev_type=\"5\"/>", machine_gp++, number);
    if (part == 'e')
        fprintf(into, "<object type=\"OSDev\" gp_index=\"%d\" name=\"eth%d\" osdev_type=\"2\"/>", machine_gp++, number);
    if (part == 'n' || part == 'd') {
        fprintf(into, "<object type=\"OSDev\" gp_index=\"%d\" name=\"mlx5_%d\" osdev_type=\"3\"><info name=\"Port1State\" value=\"%d\"/></object>",
                machine_gp++, number, part == 'n' ? 4 : 1);
        fprintf(into, "<object type=\"OSDev\" gp_index=\"%d\" name=\"ib%d\" osdev_type=\"2\"/>", machine_gp++, number);
    }
    fprintf(into, "</object>\n");
}

/* A host bridge on bus - 1 with one switch on `bus` and its devices behind it. */
static void machine_switch(FILE *into, int bus, const char *parts, size_t n)
{
    fprintf(into, "<object type=\"Bridge\" gp_index=\"%d\" bridge_type=\"0-1\" depth=\"0\" bridge_pci=\"0000:[%02x-%02x]\">\n", machine_gp++, bus - 1, bus + (int)n);
    fprintf(into, "<object type=\"Bridge\" gp_index=\"%d\" bridge_type=\"1-1\" depth=\"1\" bridge_pci=\"0000:[%02x-%02x]\" pci_busid=\"0000:%02x:00.0\" "
            "pci_type=\"0604 [1000:c030] [0000:0000] b0\" pci_link_speed=\"0.0\">\n", machine_gp++, bus, bus + (int)n, bus - 1);
    for (size_t i = 0; i < n; i++)
        machine_device(into, parts[i], bus + 1 + (int)i);
    fprintf(into, "</object>\n</object>\n");
}

/* hwloc's XML is indented by two a level: the object that holds a NUMA node closes two before it. */
static const char *machine_end_of(const char *xml, const char *node)
{
    char mark[64], end[64];
    int indent = 2;
    snprintf(mark, sizeof mark, "<object type=\"NUMANode\" os_index=\"%s\"", node);
    const char *from = xml;
    if (strcmp(node, "m") != 0) {
        from = strstr(xml, mark);
        assert_non_null(from);
        for (indent = -2; from[-1 - (indent + 2)] == ' '; indent++)
            ;
    }
    snprintf(end, sizeof end, "\n%*s</object>", indent, "");
    from = strstr(from, end);
    assert_non_null(from);
    return from + 1;
}

static char *machine_xml(const char *processors, const char *devices)
{
    hwloc_topology_t plain;
    char *exported, *xml, node[8], parts[64];
    int n, bus, taken;
    assert_int_equal(hwloc_topology_init(&plain), 0);
    assert_int_equal(hwloc_topology_set_synthetic(plain, processors), 0);
    assert_int_equal(hwloc_topology_load(plain), 0);
    assert_int_equal(hwloc_topology_export_xmlbuffer(plain, &exported, &n, 0), 0);
    xml = strdup(exported);
    hwloc_free_xmlbuffer(plain, exported);
    hwloc_topology_destroy(plain);
    machine_gp = 1000000;
    memset(machine_count, 0, sizeof machine_count);
    for (; sscanf(devices, " %7[^:]:%x=%63[gcndev]%n", node, (unsigned *)&bus, parts, &taken) == 3; devices += taken) {
        const char *at = machine_end_of(xml, node);
        char *next = NULL;
        size_t size;
        FILE *into = open_memstream(&next, &size);
        fwrite(xml, 1, (size_t)(at - xml), into);
        machine_switch(into, bus, parts, strlen(parts));
        fputs(at, into);
        fclose(into);
        free(xml);
        xml = next;
    }
    assert_int_equal(strspn(devices, " "), strlen(devices));
    return xml;
}

#endif
