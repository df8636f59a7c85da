package pci

import (
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// counter is a vector that costs nothing.
type counter struct{ n atomic.Int64 }

func (c *counter) NewVector() (Vector, error)          { return c, nil }
func (c *counter) Program(addr uint64, d uint32) error { return nil }
func (c *counter) Mask(bool) error                     { return nil }
func (c *counter) Trigger()                            { c.n.Add(1) }
func (c *counter) Pending() bool                       { return false }
func (c *counter) Clear()                              {}
func (c *counter) Close() error                        { return nil }

// quick is a host with one function whose only vector is unmasked.
func quick(tb testing.TB) (*machine, *Function, *MSIX) {
	m, f := newMachine(tb), NewFunction(testID)
	require.NoError(tb, f.AddBAR(0, BAR{Size: 0x1000, Handler: nothing{}}))
	x, err := f.AddMSIX(1, 0, 0, 0x800, new(counter))
	require.NoError(tb, err)
	dev := m.plugIn(tb, f)
	m.set(dev, 0x42, 2, 0x8000)
	poke(f.bars[0].handler, 12, 0)
	return m, f, x
}

// paths are the accesses that a guest makes often, or that a device makes.
func paths(tb testing.TB) map[string]func() {
	m, f, x := quick(tb)
	h := f.bars[0].handler
	p, masked, unmasked := make([]byte, 4), []byte{1, 0, 0, 0}, make([]byte, 4)
	m.aim(1, 4)
	return map[string]func(){
		"ECAMRead":    func() { m.ecam.Read(at(1, 4), p) },
		"ECAMWrite":   func() { m.ecam.Write(at(1, 8), p) },
		"ECAMAbsent":  func() { m.ecam.Read(at(7, 0), p) },
		"PortRead":    func() { m.ports.Read(4, p) },
		"MSIXControl": func() { m.ecam.Read(at(1, 0x40), p) },
		"TableRead":   func() { h.Read(8, p) },
		"TableMask":   func() { h.Write(12, masked); h.Write(12, unmasked) },
		"PBARead":     func() { h.Read(0x800, p) },
		"OwnerRead":   func() { h.Read(0x900, p) },
		"Trigger":     func() { x.Trigger(0) },
	}
}

func TestNoAllocation(t *testing.T) {
	for name, do := range paths(t) {
		assert.Zero(t, testing.AllocsPerRun(100, do), name)
	}
}

func BenchmarkAccess(b *testing.B) {
	for _, name := range []string{"ECAMRead", "ECAMWrite", "ECAMAbsent", "PortRead", "MSIXControl", "TableRead", "TableMask", "PBARead", "OwnerRead", "Trigger"} {
		do := paths(b)[name]
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				do()
			}
		})
	}
}
