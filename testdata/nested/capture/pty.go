package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// commandBound is how long a command may take, on an emulated host too.
const commandBound = 5 * time.Minute

// outputGrace is how long a process that the command has left behind may keep the
// terminal open.
const outputGrace = 5 * time.Second

// openPTY makes a pseudo-terminal of a size. The master's reads can be interrupted
// by Close.
func openPTY(cols, rows int) (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open a pseudo-terminal: %w", err)
	}
	master = os.NewFile(uintptr(fd), "/dev/ptmx")
	n := 0
	if err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err == nil {
		n, err = unix.IoctlGetInt(fd, unix.TIOCGPTN)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(rows), Col: uint16(cols)})
	}
	if err == nil {
		slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		master.Close()
		return nil, nil, fmt.Errorf("open a pseudo-terminal: %w", err)
	}
	return master, slave, nil
}

// runOnPTY runs a command on a terminal of its own, hands what comes out of it to
// output, from one goroutine, and returns the exit code: 128+n for signal n.
func runOnPTY(ctx context.Context, cmd *exec.Cmd, cols, rows int, output func([]byte)) (int, error) {
	master, slave, err := openPTY(cols, rows)
	if err != nil {
		return 0, err
	}
	defer master.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	err = cmd.Start()
	slave.Close()
	if err != nil {
		return 0, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for buf := make([]byte, 64<<10); ; {
			n, err := master.Read(buf)
			if n > 0 {
				output(buf[:n])
			}
			if err != nil { // EIO: nobody has the slave open
				return
			}
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, commandBound)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) })
	err = cmd.Wait()
	stop()
	select {
	case <-done:
	case <-time.After(outputGrace):
		master.Close()
		<-done
	}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return 0, fmt.Errorf("it has not ended: %w", ctx.Err())
	case errors.As(err, &exit) && exit.ExitCode() < 0:
		return 128 + int(exit.Sys().(syscall.WaitStatus).Signal()), nil
	case errors.As(err, &exit):
		return exit.ExitCode(), nil
	}
	return 0, err
}
