package vmm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/bits"
	"strings"
	"syscall"
	"time"

	"github.com/vole-vmm/vole/boot"
	"github.com/vole-vmm/vole/boot/kernel"
	"github.com/vole-vmm/vole/memory"
	"github.com/vole-vmm/vole/virtio"
)

const (
	// DefaultCmdline is the kernel command line of a Config without one: the
	// console on COM1, and a panic or reboot that ends the machine at once.
	DefaultCmdline = "console=ttyS0 reboot=k panic=-1"
	// DefaultMemory is the RAM of a Config that names none, in bytes.
	DefaultMemory = 512 << 20
	// MinMemory is the least RAM that New accepts, in bytes: what a payload
	// above 1 MiB needs. A distribution kernel needs about 64 MiB.
	MinMemory = 2 << 20
	// MaxMemory is the most RAM that New accepts, in bytes. A processor with
	// few bits of physical address has room for less, which New finds out.
	MaxMemory = 512 << 30
	hugePage  = 2 << 20
	// MaxCPUs is the most vCPUs that New accepts.
	MaxCPUs = 255
	// DefaultPanicGrace is how long a guest that has panicked may go on
	// before the machine ends it.
	DefaultPanicGrace = 10 * time.Second
)

// BootMode says which form of the kernel is booted.
type BootMode int

const (
	// BootAuto boots the vmlinux that the cache holds for a bzImage, and the
	// bzImage itself where there is none or it surprises.
	BootAuto BootMode = iota
	// BootVMLinux boots a vmlinux: the file itself, or what is extracted from
	// the bzImage, through the cache.
	BootVMLinux
	// BootBzImage boots the bzImage as it is: the guest decompresses it, and
	// can place it at random (KASLR).
	BootBzImage
)

var bootModes = []string{BootAuto: "auto", BootVMLinux: "vmlinux", BootBzImage: "bzimage"}

func (b BootMode) String() string {
	if b < 0 || int(b) >= len(bootModes) {
		return fmt.Sprintf("BootMode(%d)", int(b))
	}
	return bootModes[b]
}

// ParseBootMode is the inverse of BootMode.String.
func ParseBootMode(s string) (BootMode, error) {
	for i, name := range bootModes {
		if s == name {
			return BootMode(i), nil
		}
	}
	return 0, fmt.Errorf("boot mode %q is not one of %s", s, strings.Join(bootModes, ", "))
}

// Config describes a machine. The zero value of every field but the kernel is
// a good default.
type Config struct {
	// Kernel is the path of a bzImage or an x86-64 ELF vmlinux. KernelImage,
	// if set, is used instead and Kernel only names it in errors.
	Kernel      string
	KernelImage boot.Image
	// Initrd is the path of an initial RAM disk; empty is none. Initrds, if
	// set, is used instead: the images are loaded behind each other.
	Initrd  string
	Initrds []boot.Image
	// Cmdline is the whole kernel command line; empty is DefaultCmdline. With
	// TransportMMIOCommandLine the devices' words come before it.
	Cmdline string
	Boot    BootMode
	// Entry64 enters a vmlinux by its 64-bit entry even where it has a PVH
	// note.
	Entry64 bool
	// Cache holds extracted kernels; nil is none.
	Cache *kernel.Cache

	// Memory is the RAM in bytes, a multiple of 4 KiB; 0 is DefaultMemory.
	Memory  uint64
	Backing memory.Backing
	Huge    memory.Huge
	// CPUs is the number of vCPUs; 0 is 1.
	CPUs int
	// Devices are the virtio devices, in the order of their slots. They belong
	// to the machine from New on: it closes those that are io.Closers, and watches
	// the consoles of those that are ConsoleDevices.
	Devices []virtio.Device
	// Transport is how the guest reaches them.
	Transport Transport
	// PIT gives the guest an i8254, which a guest that finds the machine's
	// ACPI tables never uses.
	PIT bool

	// ConsoleOut receives what the guest writes to COM1; nil discards it. A
	// writer that blocks makes the guest wait; no byte is dropped. After its
	// first error the guest goes on and its output is thrown away; Exit.Err
	// has the error. If it has
	// SetWriteDeadline, Close uses that to end a Write in flight.
	ConsoleOut io.Writer
	// ConsoleIn is what the guest reads from COM1; nil is nothing. If it has
	// SetReadDeadline, Close uses that to end a Read in flight; otherwise the
	// goroutine that reads ends with that Read.
	ConsoleIn io.Reader

	// Timeout ends the machine that long after Start; 0 is never.
	Timeout time.Duration
	// PanicGrace bounds how long a guest lives on after its kernel has
	// panicked; 0 is DefaultPanicGrace.
	PanicGrace time.Duration
	// Epoch is the origin of the report's timeline; zero is the call of New.
	Epoch time.Time
	// Logger receives what an operator may want to know; nil is silent.
	Logger *slog.Logger
}

// ConsoleDevice is implemented by devices that carry a console of the guest's. The
// machine treats what the guest sends there as it treats COM1's: for the last words
// and the kernel's panic, and at the guest's end it waits until all is written.
type ConsoleDevice interface {
	virtio.Device
	// Watch has f see every byte that the guest sends, in order. It is called before
	// the guest runs; f is quick and does not keep the slice.
	Watch(f func([]byte))
	// Drain waits until what the guest has sent is written. The error is the writer's,
	// or ctx's.
	Drain(ctx context.Context) error
}

// Sentinels of this package's errors, by phase.
var (
	// ErrConfig reports a Config that no machine can be made of. Nothing was
	// created.
	ErrConfig = errors.New("vmm: bad configuration")
	// ErrKVM reports that the host's KVM cannot carry this machine.
	ErrKVM = errors.New("vmm: KVM")
	// ErrState reports a method called in a state that it does not fit.
	ErrState = errors.New("vmm: wrong state")
)

// configError names the field, its value and what would be right.
type configError struct {
	field string
	err   error
}

func (e *configError) Error() string { return e.field + ": " + e.err.Error() }
func (e *configError) Unwrap() []error {
	return []error{ErrConfig, e.err}
}

// refused makes a refusal of an error that the configuration is to blame for;
// the host's errors stay what they are.
func refused(err error) error {
	for _, input := range inputErrors {
		if errors.Is(err, input) {
			return &refusal{err}
		}
	}
	return err
}

// inputErrors are what boot and the file system find wrong with what is to be
// booted.
var inputErrors = []error{
	fs.ErrNotExist, fs.ErrPermission, syscall.ENOTDIR, syscall.ELOOP, syscall.ENAMETOOLONG,
	boot.ErrNotFile, boot.ErrEmpty, boot.ErrNotKernel, boot.ErrWrongArch,
	boot.ErrUnsupported, boot.ErrMalformed, boot.ErrTruncated, boot.ErrTooBig, boot.ErrCmdline, boot.ErrParams,
}

// refusal is another package's error about the configuration, which says
// itself what it is about.
type refusal struct{ err error }

func (e *refusal) Error() string   { return e.err.Error() }
func (e *refusal) Unwrap() []error { return []error{ErrConfig, e.err} }

func bad(field, format string, args ...any) error {
	return &configError{field, fmt.Errorf(format, args...)}
}

func (c Config) withDefaults() Config {
	if c.Cmdline == "" {
		c.Cmdline = DefaultCmdline
	}
	if c.Memory == 0 {
		c.Memory = DefaultMemory
	}
	if c.CPUs == 0 {
		c.CPUs = 1
	}
	if c.PanicGrace == 0 {
		c.PanicGrace = DefaultPanicGrace
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Validate checks everything that can be known without KVM: it opens the
// kernel and the initrd and lays them out in a guest of that size. The error
// wraps ErrConfig and names the field, its value and what would be right.
func (c Config) Validate() error {
	c = c.withDefaults()
	if err := c.validatePlain(); err != nil {
		return err
	}
	k, err := c.openImages(context.Background())
	if err != nil {
		return err
	}
	return k.close()
}

// validatePlain checks the fields that are plain values.
func (c *Config) validatePlain() error {
	switch {
	case c.Memory < MinMemory:
		return bad("memory", "%s is too little: at least %s", size(c.Memory), size(MinMemory))
	case c.Memory > MaxMemory:
		return bad("memory", "%s is too much: at most %s", size(c.Memory), size(MaxMemory))
	case c.Memory%memory.PageSize != 0:
		return bad("memory", "%d bytes is not a multiple of %d", c.Memory, memory.PageSize)
	case c.CPUs < 1 || c.CPUs > MaxCPUs:
		return bad("cpus", "%d is not between 1 and %d", c.CPUs, MaxCPUs)
	case c.Timeout < 0:
		return bad("timeout", "%v is negative", c.Timeout)
	case c.PanicGrace < 0:
		return bad("panic grace", "%v is negative", c.PanicGrace)
	case c.Kernel == "" && c.KernelImage == nil:
		return bad("kernel", "none named")
	case c.Boot < BootAuto || c.Boot > BootBzImage:
		return bad("boot", "%v is not one of %s", c.Boot, strings.Join(bootModes, ", "))
	case c.Backing != memory.Memfd && c.Backing != memory.Anonymous:
		return bad("memory backing", "%v is neither anonymous nor memfd", c.Backing)
	case c.Huge < memory.HugeAdvise || c.Huge > memory.HugeReserved:
		return bad("huge pages", "%v is none of advise, never and reserved", c.Huge)
	case c.Transport < TransportPCI || c.Transport > TransportMMIOCommandLine:
		return bad("transport", "%v is not one of %s", c.Transport, strings.Join(transports, ", "))
	case len(c.Devices) > c.Transport.MaxDevices():
		return bad("devices", "%d are too many: %v has room for %d", len(c.Devices), c.Transport, c.Transport.MaxDevices())
	case c.Huge == memory.HugeReserved && c.Memory%hugePage != 0:
		return bad("memory", "%s is not a multiple of the reserved huge pages' 2M", size(c.Memory))
	case strings.ContainsRune(c.Cmdline, 0):
		return bad("command line", "it holds a zero byte")
	}
	return nil
}

// size prints a number of bytes in the largest unit that divides it.
func size(n uint64) string {
	units := []string{"", "K", "M", "G", "T", "P", "E"}
	i := 0
	if n > 0 {
		i = min(bits.TrailingZeros64(n)/10, len(units)-1)
	}
	return fmt.Sprintf("%d%s", n>>(10*i), units[i])
}
