package guest

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// mount is a line of the mount table and, once mounted, what came of it.
type mount struct {
	kind, target string
	flags        uintptr
	data         string
	err          error
}

// mountTable is what every PID 1 mounts, in order.
func mountTable() []mount {
	const nosuid, nodev, noexec = unix.MS_NOSUID, unix.MS_NODEV, unix.MS_NOEXEC
	return []mount{
		{kind: "proc", target: "/proc", flags: nosuid | nodev | noexec},
		{kind: "sysfs", target: "/sys", flags: nosuid | nodev | noexec},
		{kind: "devtmpfs", target: "/dev", flags: nosuid, data: "mode=0755"},
		{kind: "devpts", target: "/dev/pts", flags: nosuid | noexec, data: "mode=0620,gid=5,ptmxmode=0666"},
		{kind: "tmpfs", target: "/run", flags: nosuid | nodev, data: "mode=0755"},
		{kind: "tmpfs", target: "/tmp", flags: nosuid | nodev, data: "mode=1777"},
	}
}

// mountAll mounts the table and returns it with the errors filled in. A
// directory is only made when it is missing: most are in the archive.
func mountAll() []mount {
	table := mountTable()
	for i := range table {
		m := &table[i]
		m.err = unix.Mount(m.kind, m.target, m.kind, m.flags, m.data)
		if errors.Is(m.err, unix.ENOENT) {
			if err := os.MkdirAll(m.target, 0o755); err == nil {
				m.err = unix.Mount(m.kind, m.target, m.kind, m.flags, m.data)
			}
		}
	}
	return table
}
