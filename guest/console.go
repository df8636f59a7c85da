package guest

import (
	"golang.org/x/sys/unix"
)

// console is where the report goes: a file descriptor.
type console int

// openConsole opens the kernel's console anew, because the standard streams are
// not open where the archive had no /dev/console. It falls back to standard
// error.
func openConsole() console {
	fd, err := unix.Open("/dev/console", unix.O_WRONLY|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 2
	}
	return console(fd)
}

// print writes s in as few calls as the console takes it, in the normal case
// one.
func (c console) print(s string) {
	p := []byte(s)
	for len(p) > 0 {
		n, err := unix.Write(int(c), p)
		if err != nil && err != unix.EINTR && err != unix.EAGAIN {
			return
		}
		if n > 0 {
			p = p[n:]
		}
	}
}

// drain waits until the terminal has sent everything: nothing else would
// before the machine is switched off.
func (c console) drain() {
	// TCSBRK with an argument that is not zero is tcdrain(3).
	_ = unix.IoctlSetInt(int(c), unix.TCSBRK, 1)
}
