package agent

import (
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// killBound is how long processes have to be gone when they are killed, and
	// settleBound how long their files have to be written before the power goes off.
	killBound   = 2 * time.Second
	settleBound = 20 * time.Second
)

// powerOff switches the machine off, or stops for good where it has no switch.
func powerOff() {
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_HALT)
	select {}
}

// settle kills every process but this one and brings what they wrote to where it
// stays. It returns when all of it is there: how long to wait is for the host to say.
func (a *agent) settle() {
	_ = unix.Kill(-1, unix.SIGKILL)
	a.children.wait(killBound)
	unix.Sync()
}

// rest is settle before the power goes off, with file systems unmounted. It gives up on
// one that hangs.
func (a *agent) rest() {
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.settle()
		unmountAll()
	}()
	select {
	case <-done:
	case <-time.After(killBound + settleBound):
		a.Say("vole guest: file systems do not come to rest\n")
	}
}

// unmountAll unmounts what is not the kernel's own; what is in use becomes read-only.
func unmountAll() {
	text, err := readFile("/proc/self/mounts", 1<<20)
	if err != nil {
		return
	}
	for _, dir := range toUnmount(text) {
		if unix.Unmount(dir, unix.UMOUNT_NOFOLLOW) != nil {
			_ = unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
		}
	}
}

// memoryKinds are file systems that nothing is lost of.
var memoryKinds = []string{
	"bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "fusectl", "hugetlbfs", "mqueue",
	"overlay", "proc", "ramfs", "rootfs", "securityfs", "sysfs", "tmpfs", "tracefs",
}

// toUnmount takes the directories to unmount, the last mounted first, from
// /proc/self/mounts (fstab(5)).
func toUnmount(mounts string) []string {
	var dirs []string
	for line := range strings.Lines(mounts) {
		f := strings.Fields(line)
		if len(f) < 3 || slices.Contains(memoryKinds, f[2]) {
			continue
		}
		dirs = append(dirs, unescape(f[1]))
	}
	slices.Reverse(dirs)
	return dirs
}

// unescape undoes the octal numbers that stand for white space and backslashes.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			n, ok := 0, true
			for _, d := range s[i+1 : i+4] {
				n, ok = n*8+int(d-'0'), ok && d >= '0' && d <= '7'
			}
			if ok && n < 256 {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
