/* A stand-in for libnvidia-ml.so.1: the part of NVML that vramcalc asks, for a machine described in a text file.
 *
 * The file is named by NVML_STUB_MACHINE and read at nvmlInit. Each line is a key and a value. Lines before the first
 * "gpu" describe the machine, those after a "gpu" or an "instance" (a MIG instance of that GPU) describe it. What a
 * description leaves out is answered with NVML_ERROR_NOT_SUPPORTED, as the driver does.
 *
 * Layouts, versions and error codes are those of nvml.h; -DOLD_DRIVER leaves out what drivers before 510 lack.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7, ARGUMENT_VERSION_MISMATCH = 25, UNKNOWN = 999
};
enum { MAX_GPUS = 16, MAX_INSTANCES = 7, MAX_PROCESSES = 8 };

typedef unsigned long long u64;
typedef struct { unsigned pid; u64 used; unsigned gpu_instance, compute_instance; } ProcessInfo;
typedef struct { u64 total, free, used; } Memory;
typedef struct { unsigned version; u64 total, reserved, free, used; } MemoryV2;
typedef struct {
    char bus_id_legacy[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} PciInfo;

typedef struct Device {
    struct Device *parent;
    char name[96], uuid[96], pci[32];
    u64 total, reserved, free;
    int memory, major, minor, cores, ecc, mig, gpu_instance, compute_instance;
    int handle_error, process_error, optional_error, slot;
    int n_processes, n_instances;
    ProcessInfo process[MAX_PROCESSES];
    struct Device *instance[MAX_INSTANCES];
} Device;

static int users, init_error, n_gpus;
static char driver[80];
static Device *gpu[MAX_GPUS];

static Device *new_device(Device *parent) {
    Device *d = calloc(1, sizeof *d);
    d->parent = parent;
    d->major = d->cores = d->ecc = d->mig = d->gpu_instance = -1;
    if (parent) parent->instance[parent->n_instances++] = d;
    else gpu[n_gpus++] = d;
    return d;
}

static void put(Device *d, const char *key, const char *value) {
    unsigned pid;
    u64 used;
    if (!strcmp(key, "name")) strcpy(d->name, value);
    else if (!strcmp(key, "uuid")) strcpy(d->uuid, value);
    else if (!strcmp(key, "pci")) strcpy(d->pci, value);
    else if (!strcmp(key, "memory")) d->memory = sscanf(value, "%llu %llu %llu", &d->total, &d->reserved, &d->free) == 3;
    else if (!strcmp(key, "capability")) sscanf(value, "%d.%d", &d->major, &d->minor);
    else if (!strcmp(key, "cores")) d->cores = atoi(value);
    else if (!strcmp(key, "ecc")) d->ecc = atoi(value);
    else if (!strcmp(key, "mig")) d->mig = atoi(value);
    else if (!strcmp(key, "slot")) d->slot = atoi(value);
    else if (!strcmp(key, "ids")) sscanf(value, "%d %d", &d->gpu_instance, &d->compute_instance);
    else if (!strcmp(key, "handle_error")) d->handle_error = atoi(value);
    else if (!strcmp(key, "optional_error")) d->optional_error = atoi(value);
    else if (!strcmp(key, "process_error")) d->process_error = atoi(value);
    else if (!strcmp(key, "process") && sscanf(value, "%u %llu", &pid, &used) == 2)
        d->process[d->n_processes++] = (ProcessInfo){pid, used, -1u, -1u};
    else { fprintf(stderr, "nvml_stub: cannot read '%s %s'\n", key, value); abort(); }
}

static void read_machine(FILE *file) {
    char line[256], key[32], value[200];
    Device *physical = NULL, *d = NULL;
    n_gpus = init_error = 0;
    while (fgets(line, sizeof line, file)) {
        *value = 0;
        if (sscanf(line, "%31s %199[^\n]", key, value) < 1) continue;
        if (!strcmp(key, "driver")) strcpy(driver, value);
        else if (!strcmp(key, "init_error")) init_error = atoi(value);
        else if (!strcmp(key, "gpu")) d = physical = new_device(NULL);
        else if (!strcmp(key, "instance")) d = new_device(physical);
        else put(d, key, value);
    }
}

int nvmlInitWithFlags(unsigned flags) {
    const char *path = getenv("NVML_STUB_MACHINE");
    FILE *file = path ? fopen(path, "r") : NULL;
    (void)flags;
    if (!file) return UNKNOWN;
    read_machine(file);
    fclose(file);
    if (!init_error) users++;
    return init_error;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlInit(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    if (!users) return UNINITIALIZED;
    users--;
    return SUCCESS;
}

const char *nvmlErrorString(int error) {
    static char text[32];
    snprintf(text, sizeof text, "error %d", error);
    return text;
}

/* What every question to a device begins with. */
#define CHECK(d) do { \
    if (!users) return UNINITIALIZED; \
    if (!(d)) return INVALID_ARGUMENT; \
} while (0)

/* Questions that a MIG instance does not answer, and that some platforms do not support. */
#define CHECK_OPTIONAL(d, known) do { \
    CHECK(d); \
    if ((d)->optional_error) return (d)->optional_error; \
    if ((d)->parent || !(known)) return NOT_SUPPORTED; \
} while (0)

static int text(const char *from, char *to, unsigned size) {
    if (strlen(from) >= size) return INSUFFICIENT_SIZE;
    strcpy(to, from);
    return SUCCESS;
}

int nvmlSystemGetDriverVersion(char *to, unsigned size) { return users ? text(driver, to, size) : UNINITIALIZED; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    if (!users) return UNINITIALIZED;
    *count = n_gpus;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **d) {
    if (!users) return UNINITIALIZED;
    if (index >= (unsigned)n_gpus) return INVALID_ARGUMENT;
    if (gpu[index]->handle_error) return gpu[index]->handle_error;
    *d = gpu[index];
    return SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Device **d) {
    if (!users) return UNINITIALIZED;
    for (int i = 0; i < n_gpus; i++) {
        if (!strcmp(gpu[i]->uuid, uuid)) { *d = gpu[i]; return gpu[i]->handle_error; }
        for (int k = 0; k < gpu[i]->n_instances; k++)
            if (!strcmp(gpu[i]->instance[k]->uuid, uuid)) { *d = gpu[i]->instance[k]; return SUCCESS; }
    }
    return NOT_FOUND;
}

int nvmlDeviceGetName(Device *d, char *to, unsigned size) { CHECK(d); return text(d->name, to, size); }
int nvmlDeviceGetUUID(Device *d, char *to, unsigned size) { CHECK(d); return text(d->uuid, to, size); }

int nvmlDeviceGetPciInfo_v3(Device *d, PciInfo *info) {
    CHECK_OPTIONAL(d, *d->pci);
    memset(info, 0, sizeof *info);
    strcpy(info->bus_id, d->pci);
    return SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(Device *d, int *major, int *minor) {
    CHECK_OPTIONAL(d, d->major >= 0);
    *major = d->major;
    *minor = d->minor;
    return SUCCESS;
}

/* Memory of a whole GPU that is cut up is told to privileged users only. */
static int memory(Device *d) {
    CHECK(d);
    if (d->mig == 1) return NO_PERMISSION;
    return d->memory ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetMemoryInfo(Device *d, Memory *info) {
    int error = memory(d);
    if (!error) *info = (Memory){d->total, d->free, d->total - d->free};
    return error;
}

#ifndef OLD_DRIVER
int nvmlDeviceGetMemoryInfo_v2(Device *d, MemoryV2 *info) {
    int error = memory(d);
    if (error) return error;
    if (info->version != (sizeof(MemoryV2) | 2u << 24)) return ARGUMENT_VERSION_MISMATCH;
    *info = (MemoryV2){info->version, d->total, d->reserved, d->free, d->total - d->reserved - d->free};
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(Device *d, unsigned *count, ProcessInfo *to) {
    unsigned room = *count;
    CHECK(d);
    if (d->process_error) return d->process_error;
    *count = d->n_processes;
    if (room < *count) return INSUFFICIENT_SIZE;
    if (*count) memcpy(to, d->process, *count * sizeof *to);
    return SUCCESS;
}
#endif

int nvmlDeviceGetEccMode(Device *d, int *now, int *pending) {
    CHECK_OPTIONAL(d, d->ecc >= 0);
    *now = *pending = d->ecc;
    return SUCCESS;
}

int nvmlDeviceGetNumGpuCores(Device *d, unsigned *cores) {
    CHECK_OPTIONAL(d, d->cores >= 0);
    *cores = d->cores;
    return SUCCESS;
}

int nvmlDeviceGetMigMode(Device *d, unsigned *now, unsigned *pending) {
    CHECK_OPTIONAL(d, d->mig >= 0);
    *now = *pending = d->mig;
    return SUCCESS;
}

/* NVML counts the instances there could be, and says NOT_FOUND for those there are not. */
int nvmlDeviceGetMaxMigDeviceCount(Device *d, unsigned *count) {
    CHECK(d);
    *count = d->mig == 1 ? MAX_INSTANCES : 0;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(Device *d, unsigned index, Device **instance) {
    CHECK(d);
    for (int i = 0; i < d->n_instances; i++)
        if ((unsigned)d->instance[i]->slot == index) {
            *instance = d->instance[i];
            return d->instance[i]->handle_error;
        }
    return NOT_FOUND;
}

int nvmlDeviceGetGpuInstanceId(Device *d, unsigned *id) {
    CHECK(d);
    if (d->gpu_instance < 0) return NOT_SUPPORTED;
    *id = d->gpu_instance;
    return SUCCESS;
}

int nvmlDeviceGetComputeInstanceId(Device *d, unsigned *id) {
    CHECK(d);
    if (d->gpu_instance < 0) return NOT_SUPPORTED;
    *id = d->compute_instance;
    return SUCCESS;
}
