/* What the unwinder of a gcc built for glibc (2.35 and later) asks of the C library, and musl does not have: which object
 * an address lies in and where the table of its unwind entries is. As glibc's <dlfcn.h> declares it for x86-64, where
 * dlfo_eh_frame is the segment PT_GNU_EH_FRAME; of the rest the unwinder reads nothing. */
#include <link.h>
#include <stddef.h>

struct dl_find_object {
    unsigned long long flags;
    void *map_start, *map_end;
    struct link_map *link_map;
    void *eh_frame;
    unsigned long long reserved[7];
};

struct search {
    unsigned long address;
    struct dl_find_object *found;
};

static int look(struct dl_phdr_info *info, size_t size, void *data) {
    struct search *search = data;
    unsigned long first = -1UL, end = 0, eh_frame = 0;
    (void)size;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &info->dlpi_phdr[i];
        unsigned long start = info->dlpi_addr + segment->p_vaddr;
        if (segment->p_type == PT_GNU_EH_FRAME)
            eh_frame = start;
        if (segment->p_type != PT_LOAD)
            continue;
        if (start < first)
            first = start;
        if (start + segment->p_memsz > end)
            end = start + segment->p_memsz;
    }
    if (!eh_frame || search->address < first || search->address >= end)
        return 0;
    *search->found = (struct dl_find_object){.map_start = (void *)first, .map_end = (void *)end, .eh_frame = (void *)eh_frame};
    return 1;
}

int _dl_find_object(void *address, struct dl_find_object *found) {
    struct search search = {(unsigned long)address, found};
    return dl_iterate_phdr(look, &search) ? 0 : -1;
}
