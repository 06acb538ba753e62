/*
 * A libnvidia-ml.so.1 that needs no card: it tells what the rack description says, a JSON file that
 * tests.doubles.rack writes. The file is read again whenever it changes, so a card can be lost while
 * a program watches it. The JSON is parsed by json-c, linked statically: a guest needs no package.
 *
 * What programs set (power limits, locked clocks, persistence mode) is the driver's state and lives
 * in a folder of /run. As with the real driver it is lost with a reboot, with a reload of the module
 * and, where a card has no persistence mode, when the last client has gone.
 *
 * Signatures and structures are those of NVML's public API reference. The library's own version is
 * the end of its file's name, libnvidia-ml.so.VERSION, as packages install it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <json-c/json_pointer.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define MIB (1024ULL * 1024)

typedef enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NO_PERMISSION = 4,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    INSUFFICIENT_POWER = 8,
    DRIVER_NOT_LOADED = 9,
    GPU_IS_LOST = 15,
    LIB_RM_VERSION_MISMATCH = 18,
    ARGUMENT_VERSION_MISMATCH = 25,
    UNKNOWN = 999,
} nvmlReturn_t;

typedef struct device {
    char uuid[96];
    struct device *next;
} *nvmlDevice_t;

typedef struct {
    char busIdLegacy[16];
    unsigned domain, bus, device, pciDeviceId, pciSubSystemId;
    char busId[32];
} nvmlPciInfo_t;

typedef struct {
    unsigned long long total, free, used;
} nvmlMemory_t;

typedef struct {
    unsigned version;
    unsigned long long total, reserved, free, used;
} nvmlMemory_v2_t;

typedef struct {
    unsigned pid;
    unsigned long long usedGpuMemory;
    unsigned gpuInstanceId, computeInstanceId;
} nvmlProcessInfo_t;

typedef struct {
    unsigned gpu, memory;
} nvmlUtilization_t;

typedef struct {
    unsigned version, sensorType;
    int temperature;
} nvmlTemperature_v1_t;

typedef struct {
    unsigned fieldId, scopeId;
    long long timestamp, latencyUsec;
    int valueType;
    nvmlReturn_t nvmlReturn;
    union {
        unsigned uiVal;
        unsigned long long ullVal;
    } value;
} nvmlFieldValue_t;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static unsigned initialised;
static int clients = -1;

static void unlock(const int *locked) {
    (void)locked;
    pthread_mutex_unlock(&mutex);
}

/* Every function of the API holds the mutex until it returns, by whichever way. */
#define GUARD                                                                                      \
    __attribute__((cleanup(unlock))) const int locked = pthread_mutex_lock(&mutex);               \
    (void)locked

#define GUARDED                                                                                    \
    GUARD;                                                                                         \
    if (!initialised) return UNINITIALIZED

static const char *setting(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}

static const char *rack_path(void) { return setting("HOLDFAST_RACK", "/etc/holdfast-rack.json"); }

static json_object *rack(void) {
    static json_object *description;
    static struct stat seen;
    struct stat now;
    if (stat(rack_path(), &now)) return NULL;
    if (!description || now.st_ino != seen.st_ino || now.st_size != seen.st_size ||
        now.st_mtim.tv_sec != seen.st_mtim.tv_sec || now.st_mtim.tv_nsec != seen.st_mtim.tv_nsec) {
        json_object *fresh = json_object_from_file(rack_path());
        if (fresh) {
            json_object_put(description);
            description = fresh;
            seen = now;
        }
    }
    return description;
}

/* NULL where the path is absent or null. */
static json_object *at(json_object *object, const char *path) {
    json_object *found = NULL;
    return object && !json_pointer_get(object, path, &found) ? found : NULL;
}

static const char *text_at(json_object *object, const char *path) {
    json_object *found = at(object, path);
    return found ? json_object_get_string(found) : "";
}

static unsigned number_at(json_object *object, const char *path) {
    json_object *found = at(object, path);
    return found ? (unsigned)json_object_get_int64(found) : 0;
}

static int is(json_object *card, const char *state) {
    return !strcmp(text_at(card, "/state"), state);
}

static size_t count(json_object *array) {
    return json_object_is_type(array, json_type_array) ? json_object_array_length(array) : 0;
}

/* The card of this index among those that are on the bus and bound to the driver. */
static json_object *listed(unsigned index) {
    json_object *cards = at(rack(), "/cards");
    for (size_t i = 0; i < count(cards); i++) {
        json_object *card = json_object_array_get_idx(cards, i);
        if (is(card, "gone") || strcmp(text_at(card, "/driver"), "nvidia")) continue;
        if (!index--) return card;
    }
    return NULL;
}

/* The version of the loaded driver, or "". "/sys/module/nvidia/version" means the kernel's own
 * answer; `load` then differs from one load of the module to the next. */
static void loaded_driver(char version[80], unsigned long *load) {
    const char *told = text_at(rack(), "/driver/loaded");
    struct stat file;
    *load = 0;
    snprintf(version, 80, "%s", told);
    if (*told != '/') return;
    *version = 0;
    FILE *stream = fopen(told, "re");
    if (!stream) return;
    if (fgets(version, 80, stream)) version[strcspn(version, "\n")] = 0;
    if (!fstat(fileno(stream), &file)) *load = file.st_ino;
    fclose(stream);
}

EXPORT nvmlReturn_t nvmlInit_v2(void);

static const char *library_version(void) {
    static char path[PATH_MAX];
    Dl_info library;
    if (!dladdr((void *)nvmlInit_v2, &library) || !realpath(library.dli_fname, path)) return "";
    const char *end = strstr(path, "libnvidia-ml.so.");
    return end ? end + strlen("libnvidia-ml.so.") : "";
}

static int open_state(const char *name, int flags) {
    char path[PATH_MAX];
    const char *folder = setting("HOLDFAST_RACK_STATE", "/run/holdfast-rack");
    mkdir(folder, 0755);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int file = open(path, flags | O_CREAT | O_CLOEXEC, 0666);
    /* As /dev/nvidia0: everyone may, and what is set is refused by user. */
    if (file >= 0) (void)!fchmod(file, 0666);
    return file;
}

typedef struct {
    int file;
    json_object *all;
} state_t;

/* Locked until it is closed; empty where there is none, or it is of a driver loaded before. */
static state_t read_state(int lock) {
    char version[80], driver[128];
    unsigned long load;
    state_t state = {open_state("state.json", O_RDWR), NULL};
    loaded_driver(version, &load);
    snprintf(driver, sizeof driver, "%s %lu", version, load);
    if (state.file >= 0) {
        flock(state.file, lock);
        state.all = json_object_from_fd(state.file);
    }
    if (strcmp(text_at(state.all, "/driver"), driver)) {
        json_object_put(state.all);
        state.all = json_object_new_object();
        json_object_object_add(state.all, "driver", json_object_new_string(driver));
        json_object_object_add(state.all, "cards", json_object_new_object());
    }
    return state;
}

static void close_state(state_t state) {
    json_object_put(state.all);
    if (state.file >= 0) close(state.file);
}

static nvmlReturn_t write_state(state_t state) {
    const char *text = json_object_to_json_string(state.all);
    ssize_t length = (ssize_t)strlen(text);
    if (state.file < 0 || ftruncate(state.file, 0)) return UNKNOWN;
    return pwrite(state.file, text, (size_t)length, 0) == length ? SUCCESS : UNKNOWN;
}

/* What was set on the card, to be put; NULL where nothing was. */
static json_object *remembered(json_object *card, const char *key) {
    char path[160];
    state_t state = read_state(LOCK_SH);
    snprintf(path, sizeof path, "/cards/%s/%s", text_at(card, "/uuid"), key);
    json_object *value = json_object_get(at(state.all, path));
    close_state(state);
    return value;
}

/* `value` NULL: as after the driver was loaded. */
static nvmlReturn_t remember(json_object *card, const char *key, json_object *value) {
    state_t state = read_state(LOCK_EX);
    json_object *cards = at(state.all, "/cards"), *own = NULL;
    if (!json_object_object_get_ex(cards, text_at(card, "/uuid"), &own)) {
        own = json_object_new_object();
        json_object_object_add(cards, text_at(card, "/uuid"), own);
    }
    if (value)
        json_object_object_add(own, key, value);
    else
        json_object_object_del(own, key);
    nvmlReturn_t result = write_state(state);
    close_state(state);
    return result;
}

/* The first client after the last one finds cards without persistence mode as newly loaded. */
static void become_client(void) {
    state_t state = read_state(LOCK_EX);
    clients = open_state("clients", O_RDONLY);
    if (clients >= 0 && !flock(clients, LOCK_EX | LOCK_NB)) {
        for (unsigned i = 0; listed(i); i++) {
            json_object *own = NULL, *mode = NULL;
            json_object *cards = at(state.all, "/cards");
            if (!json_object_object_get_ex(cards, text_at(listed(i), "/uuid"), &own)) continue;
            if (!json_object_object_get_ex(own, "persistence", &mode))
                mode = at(listed(i), "/persistence");
            if (json_object_get_boolean(mode)) continue;
            json_object_object_del(own, "power_limit_mw");
            json_object_object_del(own, "locked_clocks_mhz");
        }
        write_state(state);
    }
    if (clients >= 0) flock(clients, LOCK_SH);
    close_state(state);
}

static int may_change(void) { return geteuid() == number_at(rack(), "/administrator"); }

EXPORT nvmlReturn_t nvmlInitWithFlags(unsigned flags) {
    char version[80];
    unsigned long load;
    (void)flags;
    GUARD;
    if (!initialised) {
        if (!rack()) return access(rack_path(), F_OK) ? DRIVER_NOT_LOADED : UNKNOWN;
        loaded_driver(version, &load);
        if (!*version) return DRIVER_NOT_LOADED;
        if (strcmp(version, library_version())) return LIB_RM_VERSION_MISMATCH;
        become_client();
    }
    initialised++;
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

EXPORT nvmlReturn_t nvmlShutdown(void) {
    GUARDED;
    if (!--initialised && clients >= 0) {
        close(clients);
        clients = -1;
    }
    return SUCCESS;
}

EXPORT const char *nvmlErrorString(nvmlReturn_t result) {
    switch (result) {
    case SUCCESS: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NO_PERMISSION: return "Insufficient Permissions";
    case NOT_FOUND: return "Not Found";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case INSUFFICIENT_POWER: return "Insufficient External Power";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case GPU_IS_LOST: return "GPU is lost";
    case LIB_RM_VERSION_MISMATCH: return "Driver/library version mismatch";
    case ARGUMENT_VERSION_MISMATCH: return "Argument version mismatch";
    default: return "Unknown Error";
    }
}

static nvmlReturn_t copy(const char *text, char *buffer, unsigned length) {
    if (!buffer) return INVALID_ARGUMENT;
    if (strlen(text) >= length) return INSUFFICIENT_SIZE;
    strcpy(buffer, text);
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned length) {
    char loaded[80];
    unsigned long load;
    GUARDED;
    loaded_driver(loaded, &load);
    return copy(loaded, version, length);
}

EXPORT nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned length) {
    char full[96];
    GUARD;
    snprintf(full, sizeof full, "%u.%.80s", number_at(rack(), "/driver/cuda") / 1000,
             library_version());
    return copy(full, version, length);
}

EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) {
    GUARD;
    *version = (int)number_at(rack(), "/driver/cuda");
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version) {
    return nvmlSystemGetCudaDriverVersion_v2(version);
}

EXPORT nvmlReturn_t nvmlDeviceGetCount_v2(unsigned *number) {
    GUARDED;
    for (*number = 0; listed(*number);) ++*number;
    return SUCCESS;
}

static nvmlReturn_t hand_out(json_object *card, nvmlDevice_t *device) {
    static struct device *known;
    if (!device) return INVALID_ARGUMENT;
    if (!card) return NOT_FOUND;
    if (is(card, "lost")) return GPU_IS_LOST;
    if (is(card, "unpowered")) return INSUFFICIENT_POWER;
    for (*device = known; *device; *device = (*device)->next)
        if (!strcmp((*device)->uuid, text_at(card, "/uuid"))) return SUCCESS;
    *device = calloc(1, sizeof **device);
    snprintf((*device)->uuid, sizeof (*device)->uuid, "%s", text_at(card, "/uuid"));
    (*device)->next = known;
    known = *device;
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned index, nvmlDevice_t *device) {
    GUARDED;
    json_object *card = listed(index);
    return card ? hand_out(card, device) : INVALID_ARGUMENT;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    GUARDED;
    unsigned i = 0;
    while (listed(i) && strcmp(text_at(listed(i), "/uuid"), uuid)) i++;
    return hand_out(listed(i), device);
}

typedef struct {
    unsigned domain, bus, device, function;
} address_t;

static int parse_address(const char *text, address_t *address) {
    return sscanf(text, "%x:%x:%x.%x", &address->domain, &address->bus, &address->device,
                  &address->function) == 4;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *id, nvmlDevice_t *device) {
    address_t wanted, own;
    GUARDED;
    if (!parse_address(id, &wanted)) return INVALID_ARGUMENT;
    for (unsigned i = 0; listed(i); i++)
        if (parse_address(text_at(listed(i), "/address"), &own) &&
            !memcmp(&own, &wanted, sizeof own))
            return hand_out(listed(i), device);
    return NOT_FOUND;
}

/* Not in NVML: nvidia-smi names a card that it cannot get a handle of by a way of its own. */
EXPORT nvmlReturn_t holdfastAddressByIndex(unsigned index, char *address, unsigned length) {
    GUARDED;
    return copy(text_at(listed(index), "/address"), address, length);
}

static nvmlReturn_t find(nvmlDevice_t device, json_object **card) {
    if (!device) return INVALID_ARGUMENT;
    for (unsigned i = 0; (*card = listed(i)); i++)
        if (!strcmp(text_at(*card, "/uuid"), device->uuid))
            return is(*card, "well") ? SUCCESS : GPU_IS_LOST;
    return GPU_IS_LOST;
}

#define CARD(device)                                                                               \
    GUARDED;                                                                                       \
    json_object *card;                                                                             \
    nvmlReturn_t found = find(device, &card);                                                      \
    if (found) return found

static nvmlReturn_t number(nvmlDevice_t device, const char *path, double scale, unsigned *value) {
    CARD(device);
    if (!value) return INVALID_ARGUMENT;
    if (!at(card, path)) return NOT_SUPPORTED;
    *value = (unsigned)(json_object_get_double(at(card, path)) * scale + 0.5);
    return SUCCESS;
}

#define NUMBER(function, path, scale)                                                              \
    EXPORT nvmlReturn_t function(nvmlDevice_t device, unsigned *value) {                           \
        return number(device, path, scale, value);                                                 \
    }

NUMBER(nvmlDeviceGetArchitecture, "/architecture", 1)
NUMBER(nvmlDeviceGetDisplayActive, "/display_active", 1)
NUMBER(nvmlDeviceGetDisplayMode, "/display_active", 1)
NUMBER(nvmlDeviceGetPerformanceState, "/performance_state", 1)
NUMBER(nvmlDeviceGetPowerManagementDefaultLimit, "/power/default_w", 1000)
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, "/link/generation", 1)
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, "/link/generation_max", 1)
NUMBER(nvmlDeviceGetGpuMaxPcieLinkGeneration, "/link/generation_max", 1)
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, "/link/width", 1)
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, "/link/width_max", 1)
NUMBER(nvmlDeviceGetPcieReplayCounter, "/link/replays", 1)

static nvmlReturn_t text(nvmlDevice_t device, const char *path, char *buffer, unsigned length) {
    CARD(device);
    return at(card, path) ? copy(text_at(card, path), buffer, length) : NOT_SUPPORTED;
}

#define TEXT(function, path)                                                                       \
    EXPORT nvmlReturn_t function(nvmlDevice_t device, char *buffer, unsigned length) {             \
        return text(device, path, buffer, length);                                                 \
    }

TEXT(nvmlDeviceGetName, "/name")
TEXT(nvmlDeviceGetUUID, "/uuid")
TEXT(nvmlDeviceGetSerial, "/serial")
TEXT(nvmlDeviceGetVbiosVersion, "/vbios")

EXPORT nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned *index) {
    CARD(device);
    for (*index = 0; listed(*index) != card;) ++*index;
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned *minor) {
    return nvmlDeviceGetIndex(device, minor);
}

EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci) {
    address_t own = {0};
    unsigned vendor = 0, subsystem = 0;
    CARD(device);
    parse_address(text_at(card, "/address"), &own);
    sscanf(text_at(card, "/subsystem"), "%x:%x", &vendor, &subsystem);
    *pci = (nvmlPciInfo_t){
        .domain = own.domain,
        .bus = own.bus,
        .device = own.device,
        .pciDeviceId = (unsigned)strtoul(text_at(card, "/device"), NULL, 16) << 16 | 0x10de,
        .pciSubSystemId = subsystem << 16 | vendor,
    };
    snprintf(pci->busId, sizeof pci->busId, "%08X:%02X:%02X.0", own.domain, own.bus, own.device);
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "%04X:%02X:%02X.0", own.domain & 0xffff,
             own.bus & 0xff, own.device & 0xff);
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major,
                                                       int *minor) {
    CARD(device);
    return sscanf(text_at(card, "/compute_capability"), "%d.%d", major, minor) == 2 ? SUCCESS
                                                                                  : NOT_SUPPORTED;
}

/* ECC and MIG: a pending mode is not modelled. */
static nvmlReturn_t mode(nvmlDevice_t device, const char *path, unsigned *now, unsigned *pending) {
    nvmlReturn_t result = number(device, path, 1, now);
    if (!result) *pending = *now;
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t device, unsigned *now, unsigned *pending) {
    return mode(device, "/ecc", now, pending);
}

EXPORT nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned *now, unsigned *pending) {
    return mode(device, "/mig", now, pending);
}

EXPORT nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned *correctable,
                                              unsigned *uncorrectable, unsigned *pending,
                                              unsigned *failed) {
    CARD(device);
    if (!at(card, "/remapped_rows")) return NOT_SUPPORTED;
    *correctable = number_at(card, "/remapped_rows/correctable");
    *uncorrectable = number_at(card, "/remapped_rows/uncorrectable");
    *pending = number_at(card, "/remapped_rows/pending");
    *failed = number_at(card, "/remapped_rows/failed");
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory) {
    CARD(device);
    if (memory->version != (sizeof *memory | 2U << 24)) return ARGUMENT_VERSION_MISMATCH;
    memory->total = number_at(card, "/memory/total_mib") * MIB;
    memory->reserved = number_at(card, "/memory/reserved_mib") * MIB;
    memory->used = number_at(card, "/memory/used_mib") * MIB;
    memory->free = memory->total - memory->reserved - memory->used;
    return SUCCESS;
}

/* The older form counts what the card reserves as used. */
EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    nvmlMemory_v2_t full = {.version = sizeof full | 2U << 24};
    nvmlReturn_t result = nvmlDeviceGetMemoryInfo_v2(device, &full);
    if (!result) *memory = (nvmlMemory_t){full.total, full.free, full.total - full.free};
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, unsigned sensor,
                                             unsigned *degrees) {
    return sensor ? INVALID_ARGUMENT : number(device, "/temperature_c", 1, degrees);
}

EXPORT nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_v1_t *asked) {
    unsigned degrees = 0;
    nvmlReturn_t result = nvmlDeviceGetTemperature(device, asked->sensorType, &degrees);
    asked->temperature = (int)degrees;
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates) {
    nvmlReturn_t result = number(device, "/utilisation/gpu", 1, &rates->gpu);
    return result ? result : number(device, "/utilisation/memory", 1, &rates->memory);
}

static nvmlReturn_t reasons(nvmlDevice_t device, unsigned long long *mask) {
    unsigned bits;
    nvmlReturn_t result = number(device, "/throttle", 1, &bits);
    if (!result) *mask = bits;
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device,
                                                           unsigned long long *mask) {
    return reasons(device, mask);
}

EXPORT nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t device,
                                                              unsigned long long *mask) {
    return reasons(device, mask);
}

EXPORT nvmlReturn_t nvmlDeviceGetSupportedClocksEventReasons(nvmlDevice_t device,
                                                             unsigned long long *mask) {
    CARD(device);
    *mask = 0x1ff;
    return SUCCESS;
}

static nvmlReturn_t processes(nvmlDevice_t device, const char *kind, unsigned *room,
                              nvmlProcessInfo_t *infos) {
    CARD(device);
    json_object *all = at(card, "/processes");
    unsigned number = 0;
    for (size_t i = 0; i < count(all); i++) {
        json_object *process = json_object_array_get_idx(all, i);
        if (strcmp(text_at(process, "/kind"), kind)) continue;
        if (infos && number < *room)
            infos[number] = (nvmlProcessInfo_t){number_at(process, "/pid"),
                                                number_at(process, "/memory_mib") * MIB,
                                                0xffffffff, 0xffffffff};
        number++;
    }
    nvmlReturn_t result = number > *room ? INSUFFICIENT_SIZE : SUCCESS;
    *room = number;
    return result;
}

EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned *room,
                                                            nvmlProcessInfo_t *infos) {
    return processes(device, "compute", room, infos);
}

EXPORT nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned *room,
                                                             nvmlProcessInfo_t *infos) {
    return processes(device, "graphics", room, infos);
}

EXPORT nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int asked,
                                             nvmlFieldValue_t *values) {
    const unsigned recovery_action = 230, unsigned_int = 1;
    CARD(device);
    for (int i = 0; i < asked; i++) {
        values[i].valueType = unsigned_int;
        values[i].value.ullVal = number_at(card, "/recovery_action");
        values[i].nvmlReturn = values[i].fieldId == recovery_action ? SUCCESS : NOT_SUPPORTED;
    }
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t device, unsigned link, unsigned *active) {
    CARD(device);
    if (link >= number_at(card, "/nvlinks")) return INVALID_ARGUMENT;
    *active = 1;
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t device, nvmlDevice_t other,
                                                        unsigned *level) {
    const unsigned host_bridge = 30, system = 50;
    json_object *second;
    CARD(device);
    if ((found = find(other, &second))) return found;
    *level = number_at(card, "/numa_node") == number_at(second, "/numa_node") ? host_bridge : system;
    return SUCCESS;
}

static unsigned milliwatts(json_object *card, const char *path) {
    return (unsigned)(json_object_get_double(at(card, path)) * 1000 + 0.5);
}

static unsigned power_limit(json_object *card) {
    json_object *set = remembered(card, "power_limit_mw");
    unsigned limit = set ? (unsigned)json_object_get_int64(set) : milliwatts(card, "/power/default_w");
    json_object_put(set);
    return limit;
}

EXPORT nvmlReturn_t nvmlDeviceGetPowerManagementLimit(nvmlDevice_t device, unsigned *limit) {
    CARD(device);
    *limit = power_limit(card);
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t device, unsigned *limit) {
    return nvmlDeviceGetPowerManagementLimit(device, limit);
}

EXPORT nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned *usage) {
    CARD(device);
    unsigned limit = power_limit(card), wanted = milliwatts(card, "/power/draw_w");
    *usage = wanted < limit ? wanted : limit;
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t device,
                                                                 unsigned *lowest,
                                                                 unsigned *highest) {
    CARD(device);
    *lowest = milliwatts(card, "/power/min_w");
    *highest = milliwatts(card, "/power/max_w");
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceSetPowerManagementLimit(nvmlDevice_t device, unsigned limit) {
    CARD(device);
    if (!may_change()) return NO_PERMISSION;
    if (limit < milliwatts(card, "/power/min_w") || limit > milliwatts(card, "/power/max_w"))
        return INVALID_ARGUMENT;
    return remember(card, "power_limit_mw", json_object_new_int64(limit));
}

EXPORT nvmlReturn_t nvmlDeviceGetPersistenceMode(nvmlDevice_t device, unsigned *enabled) {
    CARD(device);
    json_object *set = remembered(card, "persistence");
    *enabled = (unsigned)json_object_get_boolean(set ? set : at(card, "/persistence"));
    json_object_put(set);
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceSetPersistenceMode(nvmlDevice_t device, unsigned enabled) {
    CARD(device);
    if (!may_change()) return NO_PERMISSION;
    return remember(card, "persistence", json_object_new_boolean((int)enabled));
}

EXPORT nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, unsigned type, unsigned *mhz) {
    const char *path = type == 2 ? "/clocks/max_memory_mhz" : "/clocks/max_graphics_mhz";
    return type > 3 ? INVALID_ARGUMENT : number(device, path, 1, mhz);
}

/* The driver does not report what the clocks are locked to: they just stay in that range. */
EXPORT nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, unsigned type, unsigned *mhz) {
    if (type > 3) return INVALID_ARGUMENT;
    if (type == 2) return number(device, "/clocks/memory_mhz", 1, mhz);
    CARD(device);
    json_object *range = remembered(card, "locked_clocks_mhz");
    *mhz = number_at(card, "/clocks/graphics_mhz");
    if (range) {
        unsigned lowest = number_at(range, "/0"), highest = number_at(range, "/1");
        *mhz = *mhz < lowest ? lowest : *mhz > highest ? highest : *mhz;
    }
    json_object_put(range);
    return SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceSetGpuLockedClocks(nvmlDevice_t device, unsigned lowest,
                                                 unsigned highest) {
    CARD(device);
    if (!may_change()) return NO_PERMISSION;
    if (lowest > highest || !highest) return INVALID_ARGUMENT;
    json_object *range = json_object_new_array();
    json_object_array_add(range, json_object_new_int64(lowest));
    json_object_array_add(range, json_object_new_int64(highest));
    return remember(card, "locked_clocks_mhz", range);
}

EXPORT nvmlReturn_t nvmlDeviceResetGpuLockedClocks(nvmlDevice_t device) {
    CARD(device);
    if (!may_change()) return NO_PERMISSION;
    return remember(card, "locked_clocks_mhz", NULL);
}
