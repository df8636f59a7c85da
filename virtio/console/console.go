package console

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Feature bits (VIRTIO 1.2, 5.3.3).
const (
	FeatureSize       uint64 = 1 << 0 // VIRTIO_CONSOLE_F_SIZE
	FeatureMultiport  uint64 = 1 << 1 // VIRTIO_CONSOLE_F_MULTIPORT
	FeatureEmergWrite uint64 = 1 << 2 // VIRTIO_CONSOLE_F_EMERG_WRITE
)

const (
	// MaxPorts is the most ports that a device has, port 0 included.
	MaxPorts = 31
	// MaxName is the longest name of a port, in bytes: that of a file in the
	// guest.
	MaxName = 255
	// OutBuffer is how much of what the guest sends to a port waits for the port's
	// writer on the host, in bytes.
	OutBuffer = 64 << 10
	// ConsoleInBuffer and InBuffer are how much a console's reader and any other
	// port's is read ahead of the guest, in bytes.
	ConsoleInBuffer = 4 << 10
	InBuffer        = 64 << 10
	// EmergencyBuffer is room beyond OutBuffer for emergency writes, in bytes. They
	// never wait: what finds no room is dropped and counted.
	EmergencyBuffer = 4 << 10
)

// Sizes of the queues, in descriptors.
const (
	dataQueue    = 64
	controlQueue = 32
)

// ErrOptions reports options that no device can be made of.
var ErrOptions = errors.New("console: bad options")

// Options are what a device is made of.
type Options struct {
	// Ports are the device's: at most MaxPorts, or one less if none is a console.
	// The first console is port 0, which a guest knows without control messages;
	// the others have the numbers from 1 on in their order. Without a console
	// there is no port 0.
	Ports []Port
	// Multiport offers MULTIPORT also where a console without a name is all.
	Multiport bool
	// Columns and Rows are the size of the first console's window, 0 if it is not
	// known. See Device.Resize.
	Columns, Rows int
	// Logger receives a line when a stream fails; nil is silent.
	Logger *slog.Logger
}

// Port is one port of a device.
type Port struct {
	// Name is what a Linux guest with udev calls the port in /dev/virtio-ports, ""
	// for none.
	Name string
	// Console makes it a terminal: hvc0 and on in the order of the numbers. Any
	// other port is a character device that one program opens at a time.
	Console bool

	// In gives what the guest receives; nil is nothing. It is read from one
	// goroutine, from the first DRIVER_OK on, resets of the guest or not. Its end is
	// the end of input and nothing else, unless the port has no Out and is no
	// console: then the guest is told that the host has closed the port, when it
	// has taken everything. An error counts as the end.
	In io.Reader
	// Out takes what the guest sends, from one goroutine; nil throws it away. It may
	// block: when the buffer is full the guest waits. After its first error it is not
	// called again and what the guest sends is thrown away.
	Out io.Writer
	// Closer, if set, is closed by Device.Close, once. It must return soon, and is
	// there for what In and Out stand for, as with Socket. Closing is also how a Read
	// or Write in flight can be ended; see Device.Close for other ways.
	Closer io.Closer

	// Open is called when the guest opens and closes the port, if it is set: for
	// a console when its driver is ready, and for both with false when the guest
	// resets. It is called by one goroutine at a time, is waited for by the guest,
	// and must return soon. It must not pause or close the machine, nor close the
	// device.
	Open func(open bool)
}

// number gives the ports their numbers: byID has the port of each, nil for a port
// 0 that there is not.
func number(ports []Port) (byID []*Port) {
	byID = make([]*Port, 1, len(ports)+1)
	for i := range ports {
		if byID[0] == nil && ports[i].Console {
			byID[0] = &ports[i]
			continue
		}
		byID = append(byID, &ports[i])
	}
	return byID
}

func (o *Options) validate() error {
	seen := map[string]bool{}
	for i, p := range o.Ports {
		if err := CheckName(p.Name); err != nil {
			return fmt.Errorf("%w: port %d: %w", ErrOptions, i, err)
		}
		if p.Name != "" && seen[p.Name] {
			return fmt.Errorf("%w: port %d: the name %q is taken by another port", ErrOptions, i, p.Name)
		}
		seen[p.Name] = true
	}
	n := len(number(o.Ports))
	switch {
	case len(o.Ports) == 0:
		return fmt.Errorf("%w: no port", ErrOptions)
	case n > MaxPorts:
		return fmt.Errorf("%w: %d ports: the highest number is %d, and 0 is the first console's", ErrOptions, len(o.Ports), MaxPorts-1)
	case !isSize(o.Columns) || !isSize(o.Rows):
		return fmt.Errorf("%w: a window of %d columns and %d rows: 0 to 65535 are possible", ErrOptions, o.Columns, o.Rows)
	}
	return nil
}

func isSize(n int) bool { return n >= 0 && n <= 0xffff }

// CheckName says what is wrong with the name of a port, in one line: it has to do as a
// file's name and an attribute's value. "" is no name.
func CheckName(name string) error {
	switch {
	case len(name) > MaxName:
		return fmt.Errorf("the name %.20q... has %d bytes: at most %d are possible", name, len(name), MaxName)
	case !utf8.ValidString(name):
		return fmt.Errorf("the name %q is not UTF-8", name)
	case name == "." || name == "..":
		return fmt.Errorf("the name %q means a directory", name)
	case strings.ContainsFunc(name, func(r rune) bool { return r == '/' || unicode.IsControl(r) || unicode.IsSpace(r) }):
		return fmt.Errorf("the name %q has a slash, a space or a control character in it", name)
	}
	return nil
}
