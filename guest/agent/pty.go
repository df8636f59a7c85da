package agent

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vole-vmm/vole/guest/wire"
)

// terminal is the side of a pseudoterminal that a person would sit at.
type terminal struct {
	*os.File
}

// openTerminal makes a terminal and opens the side for programs, which is slave.
func openTerminal(size wire.Size) (t *terminal, slave int, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, -1, fmt.Errorf("make a terminal: open /dev/ptmx: %w", err)
	}
	slave = -1
	var n uint32
	if err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err == nil {
		n, err = unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	}
	name := fmt.Sprintf("/dev/pts/%d", n)
	if err == nil {
		slave, err = unix.Open(name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		unix.Close(fd)
		return nil, -1, fmt.Errorf("make a terminal: %s: %w", name, err)
	}
	// As terminals are today: erasing takes whole characters.
	if tio, err := unix.IoctlGetTermios(slave, unix.TCGETS); err == nil && tio.Iflag&unix.IUTF8 == 0 {
		tio.Iflag |= unix.IUTF8
		_ = unix.IoctlSetTermios(slave, unix.TCSETS, tio)
	}
	if size != (wire.Size{}) {
		_ = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, winsize(size))
	}
	return &terminal{os.NewFile(uintptr(fd), "/dev/ptmx")}, slave, nil
}

func winsize(s wire.Size) *unix.Winsize { return &unix.Winsize{Row: s.Rows, Col: s.Cols} }

// control calls f with the descriptor.
func (t *terminal) control(f func(fd int) error) error {
	rc, err := t.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	return errors.Join(rc.Control(func(fd uintptr) { failed = f(int(fd)) }), failed)
}

// resize changes the size; the programs in the foreground get a SIGWINCH.
func (t *terminal) resize(s wire.Size) {
	_ = t.control(func(fd int) error { return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, winsize(s)) })
}

// foreground is the process group in the foreground, 0 if there is none.
func (t *terminal) foreground() (group int) {
	_ = t.control(func(fd int) (err error) {
		group, err = unix.IoctlGetInt(fd, unix.TIOCGPGRP)
		return err
	})
	return group
}

// endInput types the key that ends the input, where one does: a program that reads
// lines sees the end of its file.
func (t *terminal) endInput() {
	_ = t.control(func(fd int) error {
		tio, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err == nil && tio.Lflag&unix.ICANON != 0 && tio.Cc[unix.VEOF] != 0 {
			_, err = unix.Write(fd, tio.Cc[unix.VEOF:unix.VEOF+1])
		}
		return err
	})
}
