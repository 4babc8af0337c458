/*
 * What OpenIPMI's ipmi_sim leaves out and a lab of sleeping, crashing boards needs.
 *
 * A loadable module for ipmi_sim: "loadlib" in its configuration. One source for OpenIPMI 2.0.33 (Debian 12) and
 * 2.0.37 (Debian 13): it uses only what both headers declare alike. The option string is the command line of the
 * board's chassis program, the same one that "chassis_control" names:
 *
 *     chassis_control     "timeout 2.5 /path/chassis BOARD"
 *     loadlib "/path/board_bmc.so" "timeout 2.5 /path/chassis BOARD"
 *
 * It is run by the shell, and the simulator serves nobody else until it ends. Keep the `timeout`, and
 * keep it under the client's retransmission (3 s in lab/bmc/ipmi.py): the simulator executes what was
 * retransmitted a second time. So the chassis program starts what takes long, and does not wait for it.
 *
 *   IPMI command                         chassis program is called       and answers
 *   -----------------------------------  ------------------------------  ---------------------
 *   Get ACPI Power State (App, 07h)      get sleep                       sleep:N
 *   Chassis Control, diagnostic int.     set nmi "1"                     status 0
 *   Set System Boot Options, flags       set boot "DEV" persistent "B" efi "E"  status 0
 *   Get System Boot Options, flags       get boot persistent efi         boot:DEV, persistent:B, efi:E
 *   Set System Boot Options, clearing    set clearing "C"                status 0
 *   Get System Boot Options, clearing    get clearing                    clearing:C
 *   Activate Payload, SOL                get sol                         sol:1, or sol:0 to refuse
 *
 * N is a code of IPMI v2.0 table 20-7: 0..4 is S0..S4, 5 is S5/G2, 42 (2Ah) is "not known".
 * DEV is none, pxe, default (the disk), cdrom or bios; B is 1 when the choice outlives one boot, E when it is for UEFI
 * and not for a legacy BIOS. C is parameter 3, "boot flag valid bit clearing": with 8 in it the flags hold though no
 * Chassis Control comes within 60 s of them. The chassis keeps that time, for it is what obeys the flags.
 * A chassis program that fails makes the command fail with "unspecified error" (FFh).
 *
 * Everything else (power, reset, cycle, soft shutdown, identify) stays with the simulator.
 *
 * The system interface ("serial kcs ADDRESS PORT codec VM") asks for no password, and any account of the
 * machine can connect to its port. Here only root and the user that runs the simulator are served.
 */

#include <netinet/in.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <OpenIPMI/extcmd.h>
#include <OpenIPMI/ipmi_msgbits.h>
#include <OpenIPMI/mcserv.h>
#include <OpenIPMI/serserv.h>

#define DIAGNOSTIC_INTERRUPT 4	/* Chassis Control, byte 1 */
#define BOOT_FLAG_CLEARING 3	/* System Boot Options parameters */
#define BOOT_FLAGS 5
#define FLAGS_VALID 0x80	/* Boot Flags, data 1 */
#define FLAGS_PERSISTENT 0x40
#define FLAGS_EFI 0x20
#define CLEARING_MASK 0x1f
#define DEVICE_POWER_UNKNOWN 0x2a
#define UNSPECIFIED_ERROR 0xff
#define SYSTEM_INTERFACE 15	/* IPMI v2.0 table 6-1 */
#define PAYLOAD_SOL 1		/* Activate Payload, byte 1 */
#define PAYLOAD_ALREADY_ACTIVE 0x80	/* IPMI v2.0 table 24-2 */

/*
 * The tables in which the simulator looks a command up: exported by the program, and declared in lanserv/bmc.h, which
 * is not installed. A handler is set here. ipmi_emu_register_cmd_handler() would set it here, too, but 2.0.37 gave it
 * a first argument, of which its loader hands a module no value.
 */
extern cmd_handler_f chassis_netfn_handlers[256], app_netfn_handlers[256];

static sys_data_t *simulator;
static const char *chassis_program;
static cmd_handler_f plain_chassis_control, plain_set_boot_options, plain_get_boot_options, plain_activate_payload;

/* IPMI v2.0 table 28-14, "boot device selector". */
static extcmd_map_t boot_devices[] = {
    { 0, "none" }, { 1, "pxe" }, { 2, "default" }, { 5, "cdrom" }, { 6, "bios" }, { 0, NULL }
};

/* What calls the handlers and the codec: another interface stops the compiler, and not a board. */
_Static_assert(__builtin_types_compatible_p(cmd_handler_f, void (*)(lmc_data_t *, msg_t *, unsigned char *,
								    unsigned int *, void *)),
	       "this OpenIPMI calls command handlers in another way than 2.0.33 and 2.0.37");

typedef struct {
    unsigned char device;
    int persistent;
    int efi;
} boot_choice;

static extcmd_info_t boot_values[] = {
    { "boot", extcmd_uchar, boot_devices, offsetof(boot_choice, device) },
    { "persistent", extcmd_int, NULL, offsetof(boot_choice, persistent) },
    { "efi", extcmd_int, NULL, offsetof(boot_choice, efi) },
};
#define BOOT_VALUES (sizeof(boot_values) / sizeof(boot_values[0]))
static extcmd_info_t clearing_value[] = { { "clearing", extcmd_int, NULL, 0 } };
static extcmd_info_t sleep_value[] = { { "sleep", extcmd_int, NULL, 0 } };
static extcmd_info_t sol_value[] = { { "sol", extcmd_int, NULL, 0 } };
static extcmd_info_t nmi_value[] = { { "nmi", extcmd_int, NULL, 0 } };

static void
get_acpi_power_state(lmc_data_t *mc, msg_t *msg, unsigned char *rdata, unsigned int *rdata_len, void *cb_data)
{
    int state = 0;

    *rdata_len = 1;
    if (extcmd_getvals(simulator, &state, chassis_program, sleep_value, 1) || state < 0 || state > 0x7f) {
	rdata[0] = UNSPECIFIED_ERROR;
	return;
    }
    rdata[0] = 0;
    rdata[1] = state;
    rdata[2] = DEVICE_POWER_UNKNOWN;
    *rdata_len = 3;
}

static void
chassis_control(lmc_data_t *mc, msg_t *msg, unsigned char *rdata, unsigned int *rdata_len, void *cb_data)
{
    int on = 1;

    if (msg->len < 1 || (msg->data[0] & 0xf) != DIAGNOSTIC_INTERRUPT) {
	plain_chassis_control(mc, msg, rdata, rdata_len, cb_data);
	return;
    }
    rdata[0] = extcmd_setvals(simulator, &on, chassis_program, nmi_value, NULL, 1) ? UNSPECIFIED_ERROR : 0;
    *rdata_len = 1;
}

static void
set_boot_options(lmc_data_t *mc, msg_t *msg, unsigned char *rdata, unsigned int *rdata_len, void *cb_data)
{
    boot_choice choice = { 0, 0, 0 };

    if (msg->len >= 2 && (msg->data[0] & 0x7f) == BOOT_FLAG_CLEARING) {
	int clearing = msg->data[1] & CLEARING_MASK;

	rdata[0] = extcmd_setvals(simulator, &clearing, chassis_program, clearing_value, NULL, 1) ? UNSPECIFIED_ERROR : 0;
	*rdata_len = 1;
	return;
    }
    if (msg->len < 6 || (msg->data[0] & 0x7f) != BOOT_FLAGS) {
	plain_set_boot_options(mc, msg, rdata, rdata_len, cb_data);
	return;
    }
    /* Flags that are not valid say nothing, whatever device they name. */
    if (msg->data[1] & FLAGS_VALID) {
	choice.device = (msg->data[2] >> 2) & 0xf;
	choice.persistent = !!(msg->data[1] & FLAGS_PERSISTENT);
	choice.efi = !!(msg->data[1] & FLAGS_EFI);
    }
    rdata[0] = extcmd_setvals(simulator, &choice, chassis_program, boot_values, NULL, BOOT_VALUES) ? UNSPECIFIED_ERROR : 0;
    *rdata_len = 1;
}

static void
get_boot_options(lmc_data_t *mc, msg_t *msg, unsigned char *rdata, unsigned int *rdata_len, void *cb_data)
{
    boot_choice choice = { 0, 0, 0 };
    int clearing = 0;
    int parameter = msg->len < 3 ? -1 : msg->data[0] & 0x7f;

    if (parameter != BOOT_FLAGS && parameter != BOOT_FLAG_CLEARING) {
	plain_get_boot_options(mc, msg, rdata, rdata_len, cb_data);
	return;
    }
    if (parameter == BOOT_FLAGS ? extcmd_getvals(simulator, &choice, chassis_program, boot_values, BOOT_VALUES)
	: extcmd_getvals(simulator, &clearing, chassis_program, clearing_value, 1)) {
	rdata[0] = UNSPECIFIED_ERROR;
	*rdata_len = 1;
	return;
    }
    memset(rdata, 0, 8);
    rdata[1] = 1; /* version of the parameter's layout */
    rdata[2] = parameter;
    if (parameter == BOOT_FLAG_CLEARING) {
	rdata[3] = clearing;
	*rdata_len = 4;
	return;
    }
    if (choice.device)
	rdata[3] = FLAGS_VALID | (choice.persistent ? FLAGS_PERSISTENT : 0) | (choice.efi ? FLAGS_EFI : 0);
    rdata[4] = choice.device << 2;
    *rdata_len = 8;
}

static void
activate_payload(lmc_data_t *mc, msg_t *msg, unsigned char *rdata, unsigned int *rdata_len, void *cb_data)
{
    int is_to_be_had = 1;

    if (msg->len >= 1 && (msg->data[0] & 0x3f) == PAYLOAD_SOL) {
	*rdata_len = 1;
	if (extcmd_getvals(simulator, &is_to_be_had, chassis_program, sol_value, 1)) {
	    rdata[0] = UNSPECIFIED_ERROR;
	    return;
	}
	if (!is_to_be_had) {
	    rdata[0] = PAYLOAD_ALREADY_ACTIVE;
	    return;
	}
    }
    plain_activate_payload(mc, msg, rdata, rdata_len, cb_data);
}

/* One row of the kernel's table of sockets is searched: the one at the other end of fd. See proc_pid_net(5). */
static int
find_peer(const char *table, const char *mapped, int fd, unsigned int *uid)
{
    struct sockaddr_in theirs, ours;
    socklen_t theirs_len = sizeof(theirs), ours_len = sizeof(ours);
    char wanted[128], row[512], *found;
    unsigned long inode;
    int is_found = 0;
    FILE *rows;

    if (getpeername(fd, (struct sockaddr *)&theirs, &theirs_len) || theirs.sin_family != AF_INET
	|| getsockname(fd, (struct sockaddr *)&ours, &ours_len) || ours.sin_family != AF_INET)
	return 0;
    rows = fopen(table, "re");
    if (!rows)
	return 0;
    snprintf(wanted, sizeof(wanted), ": %s%08X:%04X %s%08X:%04X ", mapped, theirs.sin_addr.s_addr,
	     ntohs(theirs.sin_port), mapped, ours.sin_addr.s_addr, ntohs(ours.sin_port));
    while (!is_found && fgets(row, sizeof(row), rows)) {
	found = strstr(row, wanted);
	/* Behind the ends: state, queues, timer, retransmissions, user, timeout, inode. No inode: it was closed. */
	if (found && sscanf(found + strlen(wanted), "%*s %*s %*s %*s %u %*s %lu", uid, &inode) == 2)
	    is_found = inode ? 1 : -1;
    }
    fclose(rows);
    return is_found > 0;
}

static int
is_admitted(int fd)
{
    unsigned int uid;

    if (!find_peer("/proc/net/tcp", "", fd, &uid)
	&& !find_peer("/proc/net/tcp6", "0000000000000000FFFF0000", fd, &uid))
	return 0;
    return uid == 0 || uid == geteuid();
}

static ser_codec_t *plain_codec, guarded_codec, deaf_codec;

static void
ignore_char(unsigned char ch, serserv_data_t *si)
{
}

static void
forget_stranger(serserv_data_t *si)
{
    si->codec = &guarded_codec;
}

/* Called when somebody has connected, before anything that came is looked at. */
static void
guard_system_interface(serserv_data_t *si)
{
    if (is_admitted(si->con_fd)) {
	if (plain_codec->connected)
	    plain_codec->connected(si);
	return;
    }
    simulator->log(simulator, OS_ERROR, NULL, "board_bmc: a connection to the system interface is refused");
    si->codec = &deaf_codec;	/* until the simulator finds out that the connection has ended */
    shutdown(si->con_fd, SHUT_RDWR);
}

static void
take_over_system_interface(sys_data_t *sys)
{
    channel_t *channel = sys->chan_set[SYSTEM_INTERFACE];
    serserv_data_t *si = channel ? channel->chan_info : NULL;

    if (!si)
	return;
    signal(SIGPIPE, SIG_IGN);	/* what the simulator still writes to a connection that was shut down */
    plain_codec = si->codec;
    guarded_codec = deaf_codec = *plain_codec;
    guarded_codec.connected = guard_system_interface;
    deaf_codec.handle_char = ignore_char;
    deaf_codec.disconnected = forget_stranger;
    si->codec = &guarded_codec;
}

/* The handler is called in place of the simulator's own, which goes to plain. -1: the simulator has none. */
static int
take_over(cmd_handler_f *own, cmd_handler_f handler, cmd_handler_f *plain)
{
    *plain = *own;
    if (*plain)
	*own = handler;
    return *plain ? 0 : -1;
}

int
ipmi_sim_module_print_version(sys_data_t *sys, const char *options)
{
    printf("board_bmc: sleep state, diagnostic interrupt, boot flags, refused SOL, guarded system interface\n");
    return 0;
}

int
ipmi_sim_module_init(sys_data_t *sys, const char *options)
{
    simulator = sys;
    chassis_program = options;
    if (!options || !*options) {
	sys->log(sys, SETUP_ERROR, NULL, "board_bmc: the option string must be the chassis program");
	return -1;
    }
    app_netfn_handlers[IPMI_GET_ACPI_POWER_STATE_CMD] = get_acpi_power_state;
    if (take_over(&chassis_netfn_handlers[IPMI_CHASSIS_CONTROL_CMD], chassis_control, &plain_chassis_control)
	|| take_over(&chassis_netfn_handlers[IPMI_SET_SYSTEM_BOOT_OPTIONS_CMD], set_boot_options,
		     &plain_set_boot_options)
	|| take_over(&chassis_netfn_handlers[IPMI_GET_SYSTEM_BOOT_OPTIONS_CMD], get_boot_options,
		     &plain_get_boot_options)
	|| take_over(&app_netfn_handlers[IPMI_ACTIVATE_PAYLOAD_CMD], activate_payload, &plain_activate_payload)) {
	sys->log(sys, SETUP_ERROR, NULL, "board_bmc: this ipmi_sim does not take the handlers");
	return -1;
    }
    take_over_system_interface(sys);
    return 0;
}
