package guest

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

var errWentOn = errors.New("the kernel went on")

// end ends the guest and returns only if that fails.
func end(w words, cmdline string) error {
	var err error
	switch w.action {
	case actionCrash:
		err = writeFile("/proc/sysrq-trigger", "c")
	case actionHang:
		hang()
	case actionExit:
		err = debugExit(w.code)
	case actionTriple:
		if err := writeFile("/sys/kernel/reboot/type", "triple"); err != nil && !slices.Contains(splitCmdline(cmdline), "reboot=t") {
			return fmt.Errorf("%w (before Linux 5.11, add reboot=t to the command line)", err)
		}
		unix.Sync()
		err = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	case actionReboot:
		unix.Sync()
		err = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	case actionHalt:
		unix.Sync()
		err = unix.Reboot(unix.LINUX_REBOOT_CMD_HALT)
	default:
		unix.Sync()
		err = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
	if err == nil {
		err = errWentOn
	}
	return err
}

// hang does nothing, and reaps.
func hang() {
	for {
		if _, err := unix.Wait4(-1, nil, 0, nil); err == unix.ECHILD {
			_ = unix.Pause()
		}
	}
}

func writeFile(name, text string) error {
	fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.Write(fd, []byte(text))
		unix.Close(fd)
	}
	if err != nil {
		return fmt.Errorf("write %q to %s: %w", text, name, err)
	}
	return nil
}
