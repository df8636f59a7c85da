package pci

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestHeader reads what every function has (PCI 3.0, section 6.1).
func TestHeader(t *testing.T) {
	m := newMachine(t)
	dev := m.plugIn(t, NewFunction(testID))
	assert.Equal(t, 1, dev)
	tests := []struct {
		name        string
		dev, reg, n int
		want        uint32
	}{
		{"vendor and device", dev, 0, 4, 0x10421af4},
		{"vendor", dev, 0, 2, 0x1af4},
		{"device", dev, 2, 2, 0x1042},
		{"one byte", dev, 1, 1, 0x1a},
		{"two bytes in the middle", dev, 1, 2, 0x421a},
		{"command and status", dev, 4, 4, 0},
		{"revision", dev, 8, 1, 1},
		{"class", dev, 8, 4, 0x01800001},
		{"header type", dev, 14, 1, 0},
		{"subsystem", dev, 0x2c, 4, 0x00401af4},
		{"expansion ROM", dev, 0x30, 4, 0},
		{"no capability", dev, 0x34, 1, 0},
		{"interrupt line and pin", dev, 0x3c, 2, 0},
		{"last conventional byte", dev, 0xff, 1, 0},
		{"extended space", dev, 0x100, 4, 0},
		{"last dword", dev, 0xffc, 4, 0},
		{"bridge", 0, 0, 4, 0x00081b36},
		{"bridge class", 0, 8, 4, 0x06000000},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			assert.Equal(t, tt.want, m.get(tt.dev, tt.reg, tt.n))
			if tt.reg < configSize {
				assert.Equal(t, tt.want, m.getPort(tt.dev, tt.reg, tt.n))
			}
		})
	}
}

func TestReadOnly(t *testing.T) {
	m := newMachine(t)
	dev := m.plugIn(t, NewFunction(testID))
	for reg := 0; reg < extendedSize; reg += 4 {
		if reg == regCommand*4 {
			continue
		}
		old := m.get(dev, reg, 4)
		m.set(dev, reg, 4, 0xffffffff)
		require.Equal(t, old, m.get(dev, reg, 4), "register %#x", reg)
		m.set(dev, reg, 4, 0)
		require.Equal(t, old, m.get(dev, reg, 4), "register %#x", reg)
	}
}

func TestCommand(t *testing.T) {
	m := newMachine(t)
	dev := m.plugIn(t, NewFunction(testID))
	tests := []struct {
		name    string
		reg, n  int
		v, want uint32
	}{
		{"all ones", 4, 4, 0xffffffff, 0x0406},
		{"low byte", 4, 1, 0, 0x0400},
		{"high byte", 5, 1, 0, 0},
		{"memory", 4, 2, 2, 2},
		{"status takes nothing", 6, 2, 0xffff, 2},
		{"I/O is not there", 4, 2, 1, 0},
		{"in the middle", 5, 2, 0xffff, 0x0400},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m.set(dev, tt.reg, tt.n, tt.v)
			assert.Equal(t, tt.want, m.get(dev, 4, 4))
		})
	}
}

func TestCapabilities(t *testing.T) {
	m := newMachine(t)
	f := NewFunction(testID)
	first, err := f.AddCapability(0x09, []byte{1, 2, 3}, nil)
	require.NoError(t, err)
	second, err := f.AddCapability(0x05, []byte{0x10, 0x20}, []byte{0xff, 0x0f})
	require.NoError(t, err)
	assert.Equal(t, uint8(0x40), first)
	assert.Equal(t, uint8(0x48), second)
	dev := m.plugIn(t, f)

	assert.Equal(t, uint32(1<<4), m.get(dev, 6, 2), "status says that there is a list")
	assert.Equal(t, uint32(0x40), m.get(dev, 0x34, 1))
	assert.Equal(t, uint32(0x02014809), m.get(dev, 0x40, 4))
	assert.Equal(t, uint32(0x00000003), m.get(dev, 0x44, 4))
	assert.Equal(t, uint32(0x20100005), m.get(dev, 0x48, 4))

	m.set(dev, 0x40, 4, 0xffffffff)
	assert.Equal(t, uint32(0x02014809), m.get(dev, 0x40, 4))
	m.set(dev, 0x48, 4, 0xffffffff)
	assert.Equal(t, uint32(0x2fff0005), m.get(dev, 0x48, 4))
	m.set(dev, 0x4b, 1, 0)
	assert.Equal(t, uint32(0x20ff0005), m.get(dev, 0x48, 4))
}

func TestCapabilityErrors(t *testing.T) {
	f := NewFunction(testID)
	h := &windowCapability{}
	tests := []struct {
		name string
		add  func() (uint8, error)
		err  error
	}{
		{"mask too short", func() (uint8, error) { return f.AddCapability(1, []byte{1, 2}, []byte{1}) }, ErrInvalid},
		{"too long", func() (uint8, error) { return f.AddCapability(1, make([]byte, 191), nil) }, ErrNoSpace},
		{"active without a handler", func() (uint8, error) { return f.AddActiveCapability(1, []byte{1}, nil, 0, 1, nil) }, ErrInvalid},
		{"active before", func() (uint8, error) { return f.AddActiveCapability(1, []byte{1}, nil, -1, 1, h) }, ErrInvalid},
		{"active behind", func() (uint8, error) { return f.AddActiveCapability(1, []byte{1}, nil, 1, 1, h) }, ErrInvalid},
		{"active nowhere", func() (uint8, error) { return f.AddActiveCapability(1, []byte{1}, nil, 0, 0, h) }, ErrInvalid},
		{"all there is", func() (uint8, error) { return f.AddCapability(1, make([]byte, 190), nil) }, nil},
		{"nothing left", func() (uint8, error) { return f.AddCapability(1, nil, nil) }, ErrNoSpace},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := tt.add()
			assert.ErrorIs(t, err, tt.err)
		})
	}
	m := newMachine(t)
	m.plugIn(t, f)
	_, err := f.AddCapability(1, nil, nil)
	assert.ErrorIs(t, err, ErrPlugged)
	assert.ErrorIs(t, f.AddBAR(0, BAR{Size: 4096}), ErrPlugged)
	_, err = f.AddMSIX(1, 0, 0, 0x800, &fakeSource{})
	assert.ErrorIs(t, err, ErrPlugged)
	_, err = m.Plug(f)
	assert.ErrorIs(t, err, ErrPlugged)
}

// windowCapability is a capability whose last bytes lead elsewhere. body[0] chooses what they read as.
type windowCapability struct {
	calls []string
	re    func()
}

func (w *windowCapability) ReadCapability(body []byte, off int, p []byte) {
	w.calls = append(w.calls, fmt.Sprintf("read %x at %d: %x", body, off, p))
	for i := range p {
		p[i] = body[0] + byte(off+i)
	}
}

func (w *windowCapability) WriteCapability(body []byte, off int, p []byte) {
	w.calls = append(w.calls, fmt.Sprintf("write %x at %d: %x", body, off, p))
	if w.re != nil {
		w.re()
	}
}

func TestActiveCapability(t *testing.T) {
	m := newMachine(t)
	f := NewFunction(testID)
	w := &windowCapability{}
	// 0x40 ID, link; body[0..1] in the same dword; body[2..5] at 0x44, of which [3..5] are active.
	_, err := f.AddActiveCapability(9, []byte{0x10, 0, 0xaa, 1, 2, 3}, []byte{0xff, 0, 0, 0xf0, 0, 0xff}, 3, 3, w)
	require.NoError(t, err)
	dev := m.plugIn(t, f)
	tests := []struct {
		name   string
		reg, n int
		write  bool
		v      uint32
		calls  []string
	}{
		{"the dword before", 0x40, 4, false, 0x00100009, nil},
		{"all of it", 0x44, 4, false, 0x151413aa, []string{"read 1000aa010203 at 3: 010203"}},
		{"a byte that is not active", 0x44, 1, false, 0xaa, nil},
		{"one byte", 0x46, 1, false, 0x14, []string{"read 1000aa010203 at 4: 02"}},
		{"two bytes, one active", 0x44, 2, false, 0x13aa, []string{"read 1000aa010203 at 3: 01"}},
		{"write the selector", 0x42, 1, true, 0x20, nil},
		{"selected", 0x45, 1, false, 0x23, []string{"read 2000aa010203 at 3: 01"}},
		{"write", 0x44, 4, true, 0xffffffff, []string{"write 2000aaf102ff at 3: ffffff"}},
		{"write beside", 0x44, 1, true, 0xff, nil},
		{"behind", 0x48, 4, false, 0, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w.calls = nil
			if tt.write {
				m.set(dev, tt.reg, tt.n, tt.v)
			} else {
				assert.Equal(t, tt.v, m.get(dev, tt.reg, tt.n))
			}
			assert.Equal(t, tt.calls, w.calls)
		})
	}

	t.Run("the handler may use configuration space and BARs", func(t *testing.T) {
		w.re = func() { m.set(dev, 4, 2, 2) }
		m.set(dev, 0x44, 4, 0)
		assert.Equal(t, uint32(2), m.get(dev, 4, 2))
	})
}

// TestDwords: what crosses a dword is one access for each (ECAM only; mechanism 1 can't).
func TestDwords(t *testing.T) {
	m := newMachine(t)
	dev := m.plugIn(t, NewFunction(testID))
	p := make([]byte, 8)
	m.ecam.Read(at(dev, 0), p)
	assert.Equal(t, []byte{0xf4, 0x1a, 0x42, 0x10, 0, 0, 0, 0}, p)
	p = make([]byte, 4)
	m.ecam.Read(at(dev, 2), p)
	assert.Equal(t, []byte{0x42, 0x10, 0, 0}, p)
	m.ecam.Write(at(dev, 0), []byte{0, 0, 0, 0, 6, 0, 0, 0})
	assert.Equal(t, uint32(6), m.get(dev, 4, 4))

	// Past the last function of the bus there is nothing, and past the end of a function the next one begins.
	m.ecam.Read(at(0, 0xffe)|7<<12, p)
	assert.Equal(t, []byte{0xff, 0xff, 0xf4, 0x1a}, p)
	m.ecam.Read(m.ECAMSize()-2, p)
	assert.Equal(t, []byte{0xff, 0xff, 0xff, 0xff}, p)
	m.ecam.Write(m.ECAMSize()-2, p)
	m.ecam.Read(0, nil)
}
