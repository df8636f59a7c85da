package agent

import (
	"strings"

	"golang.org/x/sys/unix"
)

// mountPoint is a file system of the kernel's, and where programs expect it.
type mountPoint struct {
	kind, dir string
	flags     uintptr
	data      string
	optional  bool // no problem without
}

func mountTable() []mountPoint {
	const nosuid, nodev, noexec = unix.MS_NOSUID, unix.MS_NODEV, unix.MS_NOEXEC
	const none = nosuid | nodev | noexec
	return []mountPoint{
		{kind: "proc", dir: "/proc", flags: none},
		{kind: "sysfs", dir: "/sys", flags: none},
		{kind: "devtmpfs", dir: "/dev", flags: nosuid, data: "mode=0755"},
		// 5 is the group tty, in Debian as in others.
		{kind: "devpts", dir: "/dev/pts", flags: nosuid | noexec, data: "gid=5,mode=0620,ptmxmode=0666"},
		{kind: "tmpfs", dir: "/dev/shm", flags: nosuid | nodev, data: "mode=1777"},
		{kind: "tmpfs", dir: "/run", flags: nosuid | nodev, data: "mode=0755"},
		{kind: "mqueue", dir: "/dev/mqueue", flags: none, optional: true},
		{kind: "hugetlbfs", dir: "/dev/hugepages", flags: nosuid | nodev, optional: true},
		{kind: "cgroup2", dir: "/sys/fs/cgroup", flags: none, optional: true},
		{kind: "bpf", dir: "/sys/fs/bpf", flags: none, data: "mode=0700", optional: true},
		{kind: "tracefs", dir: "/sys/kernel/tracing", flags: none, optional: true},
		{kind: "debugfs", dir: "/sys/kernel/debug", flags: none, optional: true},
		{kind: "securityfs", dir: "/sys/kernel/security", flags: none, optional: true},
		{kind: "configfs", dir: "/sys/kernel/config", flags: none, optional: true},
		{kind: "fusectl", dir: "/sys/fs/fuse/connections", flags: none, optional: true},
	}
}

// mountSystem mounts what user space expects of a kernel, and makes what udev would have
// made. Directories that are missing in the root are made if it is ours.
func mountSystem(ours bool, p *problems) {
	for _, m := range mountTable() {
		if err := m.mount(ours); err != nil && !m.optional {
			p.check(err, "mount %s on %s", m.kind, m.dir)
		}
	}
	for _, link := range [][2]string{
		{"/proc/self/fd", "/dev/fd"},
		{"/proc/self/fd/0", "/dev/stdin"},
		{"/proc/self/fd/1", "/dev/stdout"},
		{"/proc/self/fd/2", "/dev/stderr"},
	} {
		if err := unix.Symlink(link[0], link[1]); err != unix.EEXIST {
			p.check(err, "link %s", link[1])
		}
	}
	// Everyone's by udev's rules, root's by the kernel's.
	for _, node := range []string{"/dev/fuse", "/dev/kvm", "/dev/net/tun", "/dev/vsock"} {
		_ = unix.Chmod(node, 0o666)
	}
}

// mount mounts m, and makes its directory if it is missing; what is below /sys is
// there if the kernel has it.
func (m *mountPoint) mount(ours bool) error {
	err := unix.Mount(m.kind, m.dir, m.kind, m.flags, m.data)
	if err == unix.ENOENT && (strings.HasPrefix(m.dir, "/dev/") || ours && !m.optional) {
		if err = makeDir(m.dir, 0o755); err == nil {
			err = unix.Mount(m.kind, m.dir, m.kind, m.flags, m.data)
		}
	}
	return err
}
