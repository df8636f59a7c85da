package virtio

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Doorbell is what a driver's notification rings and the goroutine of a queue
// waits for: an eventfd, so that KVM can ring it without the vCPU leaving to
// user space. It waits in the runtime's poller, so an idle queue costs no
// thread.
type Doorbell struct {
	fd int
	f  *os.File
}

// NewDoorbell makes a doorbell, which the caller closes.
func NewDoorbell() (*Doorbell, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("virtio: eventfd for a queue: %w", err)
	}
	return &Doorbell{fd: fd, f: os.NewFile(uintptr(fd), "doorbell")}, nil
}

// FD is the eventfd, for an ioeventfd. It is valid until Close.
func (d *Doorbell) FD() int { return d.fd }

var one = [8]byte{1}

// Ring wakes who waits, or lets the next Wait return at once. It may be called
// from any goroutine and does not block: only 2^64-2 rings would.
func (d *Doorbell) Ring() {
	_, _ = d.f.Write(one[:])
}

// wait blocks until the bell was rung since the last wait, and reports false
// once the bell is closed.
func (d *Doorbell) wait() bool {
	var n [8]byte
	for {
		_, err := d.f.Read(n[:])
		switch {
		case err == nil:
			return true
		case errors.Is(err, unix.EINTR):
		default:
			return false
		}
	}
}

// Close ends every wait, now and later.
func (d *Doorbell) Close() error { return d.f.Close() }
