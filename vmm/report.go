package vmm

import (
	"sync"
	"time"

	"github.com/vole-vmm/vole/virtio"
)

// Names of the marks on a report's timeline, in the order of their coming.
const (
	MarkCreated = "created" // New has made the machine
	MarkEntry   = "entry"   // the vCPUs enter the guest
	MarkConsole = "console" // the guest's first byte on its console
	MarkInit    = "init"    // user space: the boot timer, or the kernel's word
	MarkExit    = "exit"    // the guest's end is known
)

// Mark is a moment in a machine's life.
type Mark struct {
	Name string `json:"name"`
	// At is the time since Config.Epoch, in nanoseconds.
	At time.Duration `json:"at_ns"`
}

// BootInfo says what was booted and how.
type BootInfo struct {
	// Protocol is "bzimage-64", "pvh" or "elf64".
	Protocol string `json:"protocol"`
	// Kernel is the path of the kernel that was asked for.
	Kernel string `json:"kernel"`
	// Cached: a vmlinux out of the cache was booted in its place.
	Cached bool `json:"cached"`
	// Missed: the cache could hold such a vmlinux but doesn't yet; see
	// kernel.Cache.Fill.
	Missed bool `json:"missed"`
}

// DeviceReport is what can be said about a virtio device.
type DeviceReport struct {
	// Type is the device type's name: "block", "net".
	Type string `json:"type"`
	// Config is what the device was made with, if it says so (virtio.Describing): with
	// the keys of vmm/spec where there are some.
	Config map[string]any `json:"config,omitempty"`
	// Counters are the numbers that the device keeps of its work, if it does.
	Counters []virtio.Counter `json:"counters,omitempty"`
}

// Report is what can be said about a machine at a moment.
type Report struct {
	Boot   BootInfo `json:"boot"`
	VCPUs  int      `json:"vcpus"`
	Memory uint64   `json:"memory_bytes"`
	// Timeline holds the marks that have been reached.
	Timeline []Mark `json:"timeline"`
	// Exits counts the vCPUs' exits to user space by kind.
	Exits map[string]uint64 `json:"exits"`
	// Devices has the virtio devices in the order of their slots.
	Devices []DeviceReport `json:"devices,omitempty"`
	// Exit is how the machine ended; its Reason is Running before that.
	Exit Exit `json:"exit"`
}

// Report describes the machine as it is now.
func (m *Machine) Report() Report {
	r := Report{
		Boot:     m.info,
		VCPUs:    len(m.vcpus),
		Memory:   m.cfg.Memory,
		Timeline: m.times.marks(),
		Exits:    make(map[string]uint64, exitKinds),
	}
	for _, c := range m.vcpus {
		for k := range exitKinds {
			r.Exits[exitKindNames[k]] += c.hits[k].Load()
		}
	}
	m.mu.Lock()
	list := m.cfg.Devices
	m.mu.Unlock()
	for _, d := range list {
		r.Devices = append(r.Devices, reportDevice(d))
	}
	select {
	case <-m.done:
		r.Exit = m.exit
	default:
	}
	return r
}

func reportDevice(d virtio.Device) DeviceReport {
	r := DeviceReport{Type: d.Type().String()}
	if c, ok := d.(virtio.Describing); ok {
		r.Config = c.Describe()
	}
	if c, ok := d.(virtio.Counting); ok {
		r.Counters = c.Counters()
	}
	return r
}

// timeline keeps the first time that each mark was reached.
type timeline struct {
	epoch time.Time

	mu   sync.Mutex
	list []Mark
}

func (t *timeline) mark(name string) {
	at := time.Since(t.epoch)
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range t.list {
		if m.Name == name {
			return
		}
	}
	t.list = append(t.list, Mark{Name: name, At: at})
}

// sinceEntry returns for how long the guest has been running; 0 before.
func (t *timeline) sinceEntry() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range t.list {
		if m.Name == MarkEntry {
			return time.Since(t.epoch) - m.At
		}
	}
	return 0
}

func (t *timeline) marks() []Mark {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]Mark(nil), t.list...)
}
