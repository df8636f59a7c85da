package spec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/vole-vmm/vole/vmm"
)

// ErrSpec is wrapped by every error of this package: the machine as written can't be.
var ErrSpec = errors.New("bad machine description")

// FieldError says what is wrong with one field, and what would be right.
type FieldError struct {
	Field string // the key in JSON, which is also the name of the flag
	Err   error
}

func (e *FieldError) Error() string   { return e.Field + ": " + e.Err.Error() }
func (e *FieldError) Unwrap() []error { return []error{ErrSpec, e.Err} }

func bad(field, format string, args ...any) error {
	return &FieldError{field, fmt.Errorf(format, args...)}
}

// Machine is a machine in plain data. A field that is absent has the default of [vmm.Config].
type Machine struct {
	// Kernel and Initrd are paths, relative ones from the working directory.
	Kernel string `json:"kernel,omitempty"`
	Initrd string `json:"initrd,omitempty"`
	// Cmdline replaces the default kernel command line; Append comes behind either.
	Cmdline *string `json:"cmdline,omitempty"`
	Append  string  `json:"append,omitempty"`
	// Boot is "auto", "vmlinux" or "bzimage".
	Boot string `json:"boot,omitempty"`

	Memory Text `json:"memory,omitempty"` // a size as [ParseSize] reads it
	CPUs   Text `json:"cpus,omitempty"`   // a whole number
	// MemoryBacking is "memfd" or "anonymous"; HugePages "advise", "never" or "reserved".
	MemoryBacking string `json:"memory-backing,omitempty"`
	HugePages     string `json:"huge-pages,omitempty"`
	PIT           bool   `json:"pit,omitempty"`

	// Disks are the guest's disks: the first is vda. RNG gives it a source of entropy. Transport is
	// "pci" or "mmio".
	Disks     []Disk `json:"disk,omitempty"`
	RNG       bool   `json:"rng,omitempty"`
	Transport string `json:"transport,omitempty"`

	// Nets are the guest's networks: the first is eth0. Publish are ports of the host that lead into
	// the first one of kind user, as [usernet.ParsePublish] reads them.
	Nets    []Net    `json:"net,omitempty"`
	Publish []string `json:"publish,omitempty"`
	// Vsock is the guest's socket device, nil for none.
	Vsock *Vsock `json:"vsock,omitempty"`
	// ConsoleDevice is what carries the console: "serial" (ttyS0) or "virtio" (hvc0).
	ConsoleDevice string `json:"console-device,omitempty"`
	// Ports are named streams between host and guest.
	Ports []Port `json:"port,omitempty"`
	// Shares are directories of the host that the guest can mount.
	Shares []Share `json:"share,omitempty"`

	// Timeout is a duration as [ParseTimeout] reads it.
	Timeout Text `json:"timeout,omitempty"`
	// Console is a file that gets the guest's output instead of stdout; OnReset is "exit" or
	// "restart". Both are for the program that runs the machine: Config only checks them.
	Console string `json:"console,omitempty"`
	OnReset string `json:"on-reset,omitempty"`
}

// ConsoleStreams are what a virtio console reads and writes; they stand for the machine's console.
type ConsoleStreams struct {
	In  io.Reader
	Out io.Writer
}

// consoleDevices are what Machine.ConsoleDevice may be; empty is the first.
var consoleDevices = []string{"serial", "virtio"}

// VirtioConsole says whether a virtio device carries the console.
func (m Machine) VirtioConsole() bool { return m.ConsoleDevice == consoleDevices[1] }

// onResetValues are what Machine.OnReset may be; empty is the first.
var onResetValues = []string{"exit", "restart"}

// Text is a value that JSON may give as a string or as a number; it is kept as written.
type Text string

// UnmarshalJSON takes a string or a number. Anything else it keeps as it stands in the document, for
// Config to refuse with the name of the field.
func (t *Text) UnmarshalJSON(b []byte) error {
	*t = Text(b)
	if len(b) > len(`""`) && b[0] == '"' {
		return json.Unmarshal(b, (*string)(t))
	}
	return nil
}

// maxDocument bounds what Decode reads, in bytes.
const maxDocument = 1 << 20

// Decode reads one machine as JSON and nothing behind it. It does not look at the values: Config
// does.
func Decode(r io.Reader) (Machine, error) {
	var m Machine
	b, err := io.ReadAll(io.LimitReader(r, maxDocument+1))
	if err != nil {
		return Machine{}, err
	}
	if len(b) > maxDocument {
		return Machine{}, fmt.Errorf("%w: longer than %d bytes", ErrSpec, maxDocument)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		var kind *json.UnmarshalTypeError
		switch {
		case errors.As(err, &kind) && kind.Field != "":
			return Machine{}, bad(kind.Field, "a JSON %s where %s is wanted", kind.Value, jsonKind(kind.Type))
		case err == io.EOF:
			return Machine{}, fmt.Errorf("%w: empty", ErrSpec)
		}
		return Machine{}, fmt.Errorf("%w: %s", ErrSpec, strings.TrimPrefix(err.Error(), "json: "))
	}
	if _, err := d.Token(); err != io.EOF {
		return Machine{}, fmt.Errorf("%w: something behind the machine, at byte %d", ErrSpec, d.InputOffset())
	}
	return m, nil
}

// jsonKind is what a value of type t is in JSON.
func jsonKind(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Slice:
		return "a list"
	case reflect.Struct:
		return "an object"
	case reflect.Bool:
		return "true or false"
	}
	return "a " + t.String()
}

// Config checks every value and returns the machine as package vmm takes it. An error is a
// *FieldError. The virtio devices are not in it: [Machine.Devices] makes them. Whether the files are there and fit is for [vmm.Config.Validate] to say.
func (m Machine) Config() (vmm.Config, error) {
	c := vmm.Config{Kernel: m.Kernel, Initrd: m.Initrd, Cmdline: m.cmdline(), PIT: m.PIT}
	var err error
	if m.Memory != "" {
		if c.Memory, err = ParseMemory(string(m.Memory)); err != nil {
			return vmm.Config{}, &FieldError{"memory", err}
		}
	}
	if m.CPUs != "" {
		if c.CPUs, err = ParseCPUs(string(m.CPUs)); err != nil {
			return vmm.Config{}, &FieldError{"cpus", err}
		}
	}
	if m.Timeout != "" {
		if c.Timeout, err = ParseTimeout(string(m.Timeout)); err != nil {
			return vmm.Config{}, &FieldError{"timeout", err}
		}
	}
	if c.Boot, err = oneOf(m.Boot, c.Boot, vmm.BootBzImage); err != nil {
		return vmm.Config{}, &FieldError{"boot", err}
	}
	if c.Backing, err = oneOf(m.MemoryBacking, c.Backing, 1); err != nil {
		return vmm.Config{}, &FieldError{"memory-backing", err}
	}
	if c.Huge, err = oneOf(m.HugePages, c.Huge, 2); err != nil {
		return vmm.Config{}, &FieldError{"huge-pages", err}
	}
	if c.Transport, err = oneOf(m.Transport, c.Transport, vmm.TransportMMIOCommandLine); err != nil {
		return vmm.Config{}, &FieldError{"transport", err}
	}
	if n, most := m.numDevices(), c.Transport.MaxDevices(); n > most {
		return vmm.Config{}, bad(m.mostDevices(), "%d devices are too many: %v has room for %d", n, c.Transport, most)
	}
	for _, d := range m.Disks {
		if _, _, err := d.options(1); err != nil {
			return vmm.Config{}, &FieldError{"disk", err}
		}
	}
	for i, n := range m.Nets {
		if _, err := n.plan(i); err != nil {
			return vmm.Config{}, &FieldError{"net", err}
		}
	}
	if _, _, err := m.publishRules(); err != nil {
		return vmm.Config{}, &FieldError{"publish", err}
	}
	if m.Vsock != nil {
		if _, err := m.Vsock.GuestCID(); err != nil {
			return vmm.Config{}, &FieldError{"vsock", err}
		}
	}
	if m.ConsoleDevice != "" && !slices.Contains(consoleDevices, m.ConsoleDevice) {
		return vmm.Config{}, bad("console-device", "%q is not one of %s", m.ConsoleDevice, strings.Join(consoleDevices, ", "))
	}
	if err := checkPorts(m.Ports); err != nil {
		return vmm.Config{}, &FieldError{"port", err}
	}
	for _, p := range m.Ports {
		if m.Vsock != nil && p.Path == m.Vsock.Path {
			return vmm.Config{}, bad("port", "%s is the path of the vsock, too", p.Path)
		}
	}
	if err := checkShares(m.Shares); err != nil {
		return vmm.Config{}, &FieldError{"share", err}
	}
	if m.OnReset != "" && m.OnReset != onResetValues[0] && m.OnReset != onResetValues[1] {
		return vmm.Config{}, bad("on-reset", "%q is not one of %s", m.OnReset, strings.Join(onResetValues, ", "))
	}
	return c, nil
}

// numDevices is how many virtio devices the machine has.
func (m Machine) numDevices() int {
	n := len(m.Disks) + len(m.Nets) + len(m.Shares)
	for _, one := range []bool{m.Vsock != nil, m.VirtioConsole(), len(m.Ports) > 0, m.RNG} {
		if one {
			n++
		}
	}
	return n
}

// mostDevices is the field that brings most of the devices.
func (m Machine) mostDevices() string {
	name, most := "disk", len(m.Disks)
	if n := len(m.Nets); n > most {
		name, most = "net", n
	}
	if len(m.Shares) > most {
		name = "share"
	}
	return name
}

// Restart says whether a guest that resets is to be started again.
func (m Machine) Restart() bool { return m.OnReset == "restart" }

// cmdline is the complete command line, or "" for vmm's default one.
func (m Machine) cmdline() string {
	base := vmm.DefaultCmdline
	switch {
	case m.Cmdline != nil:
		base = *m.Cmdline
	case m.VirtioConsole():
		base = strings.Replace(base, "console=ttyS0", "console=hvc0", 1)
	case m.Append == "":
		return ""
	}
	line := strings.TrimSpace(base + " " + m.Append)
	if line == "" {
		// No words at all were asked for, which to vmm would mean its own.
		return " "
	}
	return line
}

// oneOf finds the value from 0 to last that s names; no name is the value unset.
func oneOf[T interface {
	~int
	String() string
}](s string, unset, last T) (T, error) {
	if s == "" {
		return unset, nil
	}
	var names []string
	for v := T(0); v <= last; v++ {
		if v.String() == s {
			return v, nil
		}
		names = append(names, v.String())
	}
	return unset, fmt.Errorf("%q is not one of %s", s, strings.Join(names, ", "))
}

// ParseTimeout reads a duration with its units, as "30s", "1m30s" or "500ms", of more than nothing.
func ParseTimeout(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		return 0, fmt.Errorf("%q is not a duration: want a number with its unit, as 500ms, 30s or 5m", s)
	case d <= 0:
		return 0, fmt.Errorf("%q is no time at all: want more than 0, as 30s (without it there is no limit)", s)
	}
	return d, nil
}

// ParseCPUs reads the number of vCPUs.
func ParseCPUs(s string) (int, error) {
	n, ok := digits(s)
	switch {
	case !ok:
		return 0, fmt.Errorf("%q is not a whole number between 1 and %d", s, vmm.MaxCPUs)
	case n < 1 || n > vmm.MaxCPUs:
		return 0, fmt.Errorf("%s is not between 1 and %d", s, vmm.MaxCPUs)
	}
	return int(n), nil
}

// digits reads a number in decimal digits alone; one too large for uint64 becomes the largest.
func digits(s string) (n uint64, ok bool) {
	if s == "" {
		return 0, false
	}
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
		if n > (math.MaxUint64-uint64(c-'0'))/10 {
			n = math.MaxUint64
			continue
		}
		n = n*10 + uint64(c-'0')
	}
	return n, true
}
