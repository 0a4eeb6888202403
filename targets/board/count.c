// A plugin for QEMU that counts what a library executes: how often each block of its code runs,
// and how often two levels of cache miss. It begins where the program first writes to its standard
// output: what went before has warmed the caches up.
//
//   qemu-aarch64 -plugin count.so,library=FILE,out=FILE,l1=SETS:WAYS,l2=SETS:WAYS ...
//
// Writes a line a block, "OFFSET INSTRUCTIONS TIMES L1_MISSES L2_MISSES", its offset in the library
// in hexadecimal, and "end" behind the last. Caches have lines of 64 bytes, evict what was used
// longest ago, and see the library's accesses only; nothing is fetched ahead. The library must
// run in one thread.
//
// Of QEMU's interface this needs what all versions have; there is no header in its packages.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef struct qemu_info qemu_info_t;
enum { NO_REGISTERS = 0, READS_AND_WRITES = 3, WRITE = 64, STANDARD_OUTPUT = 1 };
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t,
                                           void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *),
                                          int, void *);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *,
                                      void (*)(unsigned, uint32_t, uint64_t, void *), int, int,
                                      void *);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t,
                                          void (*)(qemu_plugin_id_t, unsigned, int64_t, uint64_t,
                                                   uint64_t, uint64_t, uint64_t, uint64_t,
                                                   uint64_t, uint64_t, uint64_t));
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void *), void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
unsigned qemu_plugin_mem_size_shift(uint32_t);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = PLUGIN_VERSION;

struct block {
  uint64_t address, instructions, times, l1_misses, l2_misses;
  struct block *next;
};

struct cache {
  unsigned sets, ways;
  uint64_t *lines, *used;
};

static struct block *blocks;
static struct cache l1, l2;
static uint64_t now;
static const char *library, *out;
static uint64_t first, behind;  // addresses of the library
static uint64_t latest;         // line that was accessed; nothing is older or newer for it

static int hits(struct cache *cache, uint64_t line) {
  uint64_t *lines = cache->lines + line % cache->sets * cache->ways;
  uint64_t *used = cache->used + line % cache->sets * cache->ways;
  unsigned oldest = 0;
  now++;
  for (unsigned way = 0; way < cache->ways; way++) {
    if (lines[way] == line + 1) {
      used[way] = now;
      return 1;
    }
    if (used[way] < used[oldest]) oldest = way;
  }
  lines[oldest] = line + 1;
  used[oldest] = now;
  return 0;
}

static void access_memory(unsigned cpu, uint32_t info, uint64_t address, void *block) {
  struct block *here = block;
  const uint64_t last = (address + (1u << qemu_plugin_mem_size_shift(info)) - 1) >> 6;
  for (uint64_t line = address >> 6; line <= last; line++) {
    if (line == latest || hits(&l1, latest = line)) continue;
    here->l1_misses++;
    if (!hits(&l2, line)) here->l2_misses++;
  }
  (void)cpu;
}

static void execute(unsigned cpu, void *block) {
  ((struct block *)block)->times++;
  (void)cpu;
}

// Where the library is in memory; the emulator's own addresses are the emulated ones.
static void find_library(void) {
  char line[4096];
  FILE *maps = fopen("/proc/self/maps", "r");
  if (!maps) return;
  while (fgets(line, sizeof line, maps)) {
    unsigned long low, high;
    const size_t length = strcspn(line, "\n"), ours = strlen(library);
    if (length < ours || strncmp(line + length - ours, library, ours)) continue;
    if (sscanf(line, "%lx-%lx", &low, &high) != 2) continue;
    if (!first || low < first) first = low;
    if (high > behind) behind = high;
  }
  fclose(maps);
}

static void translate(qemu_plugin_id_t id, struct qemu_plugin_tb *code) {
  const uint64_t address = qemu_plugin_tb_vaddr(code);
  if (!first) find_library();
  if (address < first || address >= behind) return;
  struct block *block = calloc(1, sizeof *block);
  block->address = address;
  block->instructions = qemu_plugin_tb_n_insns(code);
  block->next = blocks;
  blocks = block;
  qemu_plugin_register_vcpu_tb_exec_cb(code, execute, NO_REGISTERS, block);
  for (size_t i = 0; i < block->instructions; i++) {
    qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(code, i), access_memory,
                                     NO_REGISTERS, READS_AND_WRITES, block);
  }
  (void)id;
}

static void begin(qemu_plugin_id_t id, unsigned cpu, int64_t call, uint64_t file, uint64_t a,
                  uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g) {
  static int begun;
  if (begun || call != WRITE || file != STANDARD_OUTPUT) return;
  begun = 1;
  for (struct block *block = blocks; block; block = block->next) {
    block->times = block->l1_misses = block->l2_misses = 0;
  }
  (void)id, (void)cpu, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g;
}

static void finish(qemu_plugin_id_t id, void *unused) {
  FILE *file = fopen(out, "w");
  if (!file) return;
  for (struct block *block = blocks; block; block = block->next) {
    fprintf(file, "%lx %lu %lu %lu %lu\n", block->address - first, block->instructions,
            block->times, block->l1_misses, block->l2_misses);
  }
  fprintf(file, "end\n");
  fclose(file);
  (void)id, (void)unused;
}

static int shape(struct cache *cache, const char *text) {
  if (sscanf(text, "%u:%u", &cache->sets, &cache->ways) != 2) return 0;
  cache->lines = calloc(cache->sets * cache->ways, sizeof *cache->lines);
  cache->used = calloc(cache->sets * cache->ways, sizeof *cache->used);
  return cache->lines && cache->used;
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int count,
                               char **arguments) {
  for (int i = 0; i < count; i++) {
    if (!strncmp(arguments[i], "library=", 8)) library = strdup(arguments[i] + 8);
    if (!strncmp(arguments[i], "out=", 4)) out = strdup(arguments[i] + 4);
    if (!strncmp(arguments[i], "l1=", 3) && !shape(&l1, arguments[i] + 3)) return 1;
    if (!strncmp(arguments[i], "l2=", 3) && !shape(&l2, arguments[i] + 3)) return 1;
  }
  if (!library || !out || !l1.sets || !l2.sets) return 1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
  qemu_plugin_register_vcpu_syscall_cb(id, begin);
  qemu_plugin_register_atexit_cb(id, finish, NULL);
  (void)info;
  return 0;
}
