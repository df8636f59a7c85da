package virtio

import (
	"encoding/binary"
	"sync"
)

// Device is a device type: what a [Function] needs of it. The methods are
// called one at a time, on vCPU threads and by the machine, except that
// ReadConfig, WriteConfig, ConfigGeneration and State may be called at any time,
// also during a reset.
type Device interface {
	// Type is the device type.
	Type() Type
	// Features are the type's own feature bits on offer. Those of the rings
	// are added. It gives the same bits each time.
	Features() uint64
	// QueueSizes has the largest size of each queue: powers of two.
	QueueSizes() []uint16
	// ReadConfig fills p with the configuration space from off on. Bytes past
	// its end are 0 (rule 5).
	ReadConfig(off uint32, p []byte)
	// WriteConfig takes a driver's write. What is read-only or past the end is
	// dropped.
	WriteConfig(off uint32, p []byte)
	// ConfigGeneration changes whenever a field did that takes more than one
	// access to read.
	ConfigGeneration() uint32
	// Activate starts the device with what was negotiated. An error makes the
	// Function say DEVICE_NEEDS_RESET. The functions in Activation must not be
	// called before it has returned, other than from the device's goroutines, and
	// neither with a lock held that State takes.
	Activate(Activation) error
	// Reset ends what Activate began. The queues of the Activation are stopped
	// already: their Wait reports false and their Pop finds nothing. When it
	// returns, every goroutine of the device is joined, so that no ring or
	// buffer is accessed and no interrupt raised any more (rule 1).
	Reset()
	// State is a copy of the device's registers, a plain struct: what is not in
	// guest memory and not in the configuration that made it.
	State() any
}

// Counter is a number that a device keeps of its work.
type Counter struct {
	Name  string `json:"name"`
	Value uint64 `json:"value"`
}

// Counting is implemented by devices that keep numbers, for reports. Counters may be
// called at any time.
type Counting interface {
	Counters() []Counter
}

// Describing is implemented by devices that say what they were made with, for
// reports.
type Describing interface {
	// Describe gives the type's own words ("tap", "mtu") their values: bools,
	// numbers, strings, lists of strings, and maps from strings to them. It is
	// as long as the options were, and has nothing that must stay secret. The map is
	// the caller's. Describe may be called at any time.
	Describe() map[string]any
}

// Activation is what a device works with from DRIVER_OK to its reset.
type Activation struct {
	// Features are those that the driver acknowledged: what is not in them is
	// not used (rule 3).
	Features uint64
	// Queues has the device's queues in their order, nil for one that the
	// driver did not enable.
	Queues []*Queue
	// ConfigChanged raises a configuration change notification, at Resume if the
	// Function is paused.
	ConfigChanged func()
	// Fail says that the device can't go on until it is reset (rule 6). It is
	// called for a request before that is pushed, so that a pause waits for it.
	Fail func(error)
}

// ConfigSpace is a configuration space of plain bytes, which a device embeds:
// read-only for the driver, changed as a whole by the device. Its methods may be
// called from any goroutine.
type ConfigSpace struct {
	mu         sync.Mutex
	bytes      []byte
	generation uint32
}

// NewConfigSpace returns a space with the little-endian encoding of v, a struct
// or value of fixed size.
func NewConfigSpace(v any) (*ConfigSpace, error) {
	b, err := binary.Append(nil, binary.LittleEndian, v)
	if err != nil {
		return nil, err
	}
	return &ConfigSpace{bytes: b}, nil
}

// ReadConfig implements Device.
func (c *ConfigSpace) ReadConfig(off uint32, p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	if uint64(off) < uint64(len(c.bytes)) {
		n = copy(p, c.bytes[off:])
	}
	clear(p[n:])
}

// WriteConfig implements Device: nothing can be written.
func (c *ConfigSpace) WriteConfig(uint32, []byte) {}

// ConfigGeneration implements Device.
func (c *ConfigSpace) ConfigGeneration() uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.generation
}

// Update lets change edit the bytes; the generation changes with it.
func (c *ConfigSpace) Update(change func(b []byte)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(c.bytes)
	c.generation++
}
