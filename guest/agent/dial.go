package agent

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// hostCID is the host's context id (VIRTIO 1.2, 5.10.4).
const hostCID = 2

// dialTimeout is how long the kernel waits for the host's answer, in seconds. Its
// default of two is little for a host that is busy.
const dialTimeout = 10

// dialVsock connects to a port of the host.
func dialVsock(port uint32) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a vsock socket: %w", err)
	}
	_ = unix.SetsockoptTimeval(fd, unix.AF_VSOCK, unix.SO_VM_SOCKETS_CONNECT_TIMEOUT, &unix.Timeval{Sec: dialTimeout})
	err = unix.Connect(fd, &unix.SockaddrVM{CID: hostCID, Port: port})
	f := os.NewFile(uintptr(fd), "vsock")
	if err == unix.EINPROGRESS {
		err = connected(f)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("connect to vsock port %d of the host: %w", port, err)
	}
	return f, nil
}

// connected waits until a connection is made or has failed.
func connected(f *os.File) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = rc.Write(func(fd uintptr) bool {
		errno, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && errno != 0 {
			err = unix.Errno(errno)
		}
		if err == nil {
			if _, err = unix.Getpeername(int(fd)); err == unix.ENOTCONN {
				return false
			}
		}
		failed = err
		return true
	})
	if err != nil {
		return err
	}
	return failed
}

// shut ends a direction of a connection, unix.SHUT_RD or SHUT_WR.
func shut(f *os.File, how int) {
	if rc, err := f.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), how) })
	}
}
