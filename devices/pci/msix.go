package pci

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// MaxVectors is the number of vectors that MSI-X can give to one function.
const MaxVectors = 2048

const (
	capMSIX = 0x11

	msixEnable       = 1 << 15 // message control (PCI 3.0, section 6.8.2.3)
	msixFunctionMask = 1 << 14
	msixWritable     = msixEnable | msixFunctionMask
	msixControlSize  = 0x7ff // table size minus one
)

// VectorSource makes the vectors of a function.
type VectorSource interface {
	// NewVector returns a vector that is masked, not pending, and not programmed.
	NewVector() (Vector, error)
}

// Vector is one interrupt on its way to the guest. Program, Mask, Pending, Clear and Close are called one at a time;
// Trigger comes from any goroutine at any moment, and must be cheap.
type Vector interface {
	// Program sets the message. It is called before the first unmasking, and again only with another message; the
	// vector may be unmasked.
	Program(addr uint64, data uint32) error
	// Mask holds interrupts back, or lets them go again, the one that is pending first.
	Mask(masked bool) error
	// Trigger sends the interrupt, or makes it pending while the vector is masked.
	Trigger()
	// Pending reports whether an interrupt was held back.
	Pending() bool
	// Clear forgets the one that was held back. The vector is masked.
	Clear()
	// Close releases what the vector holds.
	Close() error
}

// MSIX is the MSI-X capability of a function: its table, its pending bits and its message control. Its methods may be
// called from any goroutine.
type MSIX struct {
	reg     int         // index of the dword in configuration space with message control
	enabled atomic.Bool // msixEnable of control, for Trigger
	vectors []vector

	tableOffset, pbaOffset uint64 // in the BAR
	pbaSize                uint64

	mu      sync.Mutex
	control uint16 // its writable bits
	table   []byte // as the guest sees it
	err     error
	closed  bool
}

// vector is a Vector and what it was last told. All but the Vector itself is guarded by the lock of the MSIX.
type vector struct {
	v          Vector
	live       bool // unmasked
	programmed bool
	addr       uint64
	data       uint32
}

// AddMSIX gives the function n vectors from src, 1 to [MaxVectors], with the table (16 bytes a vector) and the pending
// bits (8 bytes for each 64 vectors) at these offsets, multiples of 8, of the BAR at index bar, which must have been
// added. Accesses to the two ranges do not reach the handler of that BAR. The vectors belong to the function, which closes
// them.
func (f *Function) AddMSIX(n, bar int, tableOffset, pbaOffset uint32, src VectorSource) (*MSIX, error) {
	if err := f.building("add MSI-X"); err != nil {
		return nil, err
	}
	m := &MSIX{tableOffset: uint64(tableOffset), pbaOffset: uint64(pbaOffset)}
	m.pbaSize = uint64(n+63) / 64 * 8
	table, pba := Range{m.tableOffset, uint64(n) * entrySize}, Range{m.pbaOffset, m.pbaSize}
	switch {
	case f.msix != nil:
		return nil, invalid("MSI-X twice")
	case src == nil || n < 1 || n > MaxVectors:
		return nil, invalid("MSI-X with %d vectors: 1 to %d are possible, from a source", n, MaxVectors)
	case bar < 0 || bar >= numBARs || f.bars[bar] == nil:
		return nil, invalid("MSI-X in BAR %d, which is not there", bar)
	case tableOffset%8 != 0 || pbaOffset%8 != 0:
		return nil, invalid("MSI-X table at %#x, pending bits at %#x: multiples of 8 are wanted", tableOffset, pbaOffset)
	case f.reach(bar, table.Base, int(table.Size)) == nil || f.reach(bar, pba.Base, int(pba.Size)) == nil:
		return nil, invalid("MSI-X table at %#x, pending bits at %#x: they do not fit into BAR %d", tableOffset, pbaOffset, bar)
	case table.overlaps(pba):
		return nil, invalid("MSI-X table at %#x and pending bits at %#x overlap", tableOffset, pbaOffset)
	}

	body := binary.LittleEndian.AppendUint16(nil, uint16(n-1)&msixControlSize)
	body = binary.LittleEndian.AppendUint32(body, tableOffset|uint32(bar))
	body = binary.LittleEndian.AppendUint32(body, pbaOffset|uint32(bar))
	if len(body) > configSize-2-f.free {
		return nil, fmt.Errorf("pci: MSI-X capability at %#x: %w", f.free, ErrNoSpace)
	}
	for i := range n {
		v, err := src.NewVector()
		if err != nil {
			err = fmt.Errorf("pci: make MSI-X vector %d of %d: %w", i, n, err)
			return nil, errors.Join(err, m.close())
		}
		m.vectors = append(m.vectors, vector{v: v})
	}
	m.table = make([]byte, n*entrySize)
	m.clearTable()
	// The bits of message control that can be written live in m, not in the registers: what they do needs no other
	// register, and takes longer than the host's lock should be held.
	offset, err := f.AddCapability(capMSIX, body, nil)
	if err != nil {
		return nil, errors.Join(err, m.close())
	}
	m.reg = int(offset) / 4
	f.msix = m
	f.bars[bar].handler = msixBAR{m, f.bars[bar].handler}
	return m, nil
}

// Len returns the number of vectors.
func (m *MSIX) Len() int { return len(m.vectors) }

// Trigger raises vector v. Nothing happens while MSI-X is disabled, nor if there is no such vector.
func (m *MSIX) Trigger(v uint16) {
	if int(v) < len(m.vectors) && m.enabled.Load() {
		m.vectors[v].v.Trigger()
	}
}

// Reset disables MSI-X and masks and empties every entry of the table: the state after a reset of the bus. The reset of a
// device by its driver keeps the table, which belongs to PCI; [MSIX.ClearPending] is for that.
func (m *MSIX) Reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.enabled.Store(false)
	m.control, m.err = 0, nil
	m.clearTable()
	m.syncAll()
}

// ClearPending forgets the interrupts that masked vectors hold back. A device that is reset calls it, once nothing calls
// Trigger any more, so that no interrupt from before reaches the driver afterwards.
func (m *MSIX) ClearPending() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clearPending()
}

// Err returns the first error that a vector has given since the last reset. Such a vector stays masked until the guest
// next touches it, which tries again.
func (m *MSIX) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

func (m *MSIX) close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.enabled.Store(false)
	if m.closed {
		return nil
	}
	m.closed = true
	var errs []error
	for i := range m.vectors {
		errs = append(errs, m.vectors[i].v.Close())
	}
	return errors.Join(errs...)
}

// readControl returns the bits of message control that can be written.
func (m *MSIX) readControl() uint16 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.control
}

// writeControl changes the bits of message control that are in mask.
func (m *MSIX) writeControl(v, mask uint16) {
	m.mu.Lock()
	defer m.mu.Unlock()
	mask &= msixWritable
	m.setControl(m.control&^mask | v&mask)
}

func (m *MSIX) setControl(control uint16) {
	if m.control == control || m.closed {
		return
	}
	was := m.control&msixEnable != 0
	m.control = control
	is := control&msixEnable != 0
	if is && !was {
		// A Trigger that had seen MSI-X enabled may have come after it was disabled.
		m.clearPending()
	}
	m.enabled.Store(is)
	m.syncAll()
}

// unmasked reports whether message control lets vectors through.
func (m *MSIX) unmasked() bool { return m.control&msixWritable == msixEnable }

func (m *MSIX) clearPending() {
	for i := range m.vectors {
		if v := &m.vectors[i]; !v.live && !m.closed {
			v.v.Clear()
		}
	}
}

func (m *MSIX) syncAll() {
	for i := range m.vectors {
		m.sync(i)
	}
}

// sync tells vector i what it has not been told: its message, if it is to be unmasked and the message is another one, and
// whether it is masked. Each of these may cost a system call.
func (m *MSIX) sync(i int) {
	v := &m.vectors[i]
	if m.closed {
		return
	}
	e := m.entry(i)
	if !m.unmasked() || e.Control&entryMasked != 0 {
		if v.live {
			v.live = m.failed(i, "mask", v.v.Mask(true))
		}
		return
	}
	if !v.programmed || v.addr != e.Address || v.data != e.Data {
		v.programmed = !m.failed(i, "program", v.v.Program(e.Address, e.Data))
		v.addr, v.data = e.Address, e.Data
	}
	if !v.programmed {
		// An old message must not go out in place of the new one.
		if v.live {
			v.live = m.failed(i, "mask", v.v.Mask(true))
		}
		return
	}
	if !v.live {
		v.live = !m.failed(i, "unmask", v.v.Mask(false))
	}
}

// failed keeps err and reports whether there is one.
func (m *MSIX) failed(i int, what string, err error) bool {
	if err != nil && m.err == nil {
		m.err = fmt.Errorf("pci: %s MSI-X vector %d: %w", what, i, err)
	}
	return err != nil
}
