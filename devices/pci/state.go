package pci

import (
	"errors"
	"fmt"
)

// ErrState is a state that was not taken from a function or host of this shape.
var ErrState = errors.New("the state does not fit")

// HostState is the registers of a [Host] and of all that is on its bus.
type HostState struct {
	Address   uint32          // of configuration mechanism 1
	Functions []FunctionState // by device number, the bridge first
}

// FunctionState is what a guest can change in a [Function].
type FunctionState struct {
	Command      uint16
	BARs         [numBARs]uint32   // the registers, with their flags
	Capabilities []CapabilityState // in the order of the list
	MSIX         *MSIXState        // nil without MSI-X
}

// CapabilityState is the bits of a capability's body that can be written; the others are 0.
type CapabilityState struct {
	Offset uint8
	Body   []byte
}

// MSIXState is the registers of an [MSIX].
type MSIXState struct {
	Control uint16 // enable and function mask
	Table   []MSIXEntry
}

// State returns a copy of the registers of the bus.
func (h *Host) State() HostState {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := HostState{Address: h.address.Load()}
	h.functions(func(f *Function) { s.Functions = append(s.Functions, f.state()) })
	return s
}

// SetState puts the bus into state s, which must come from a host with the same functions, and maps BARs accordingly.
// The error is [ErrState], and nothing has changed then. Bits that a guest could not have written are ignored.
func (h *Host) SetState(s HostState) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(s.Functions) != h.plug {
		return fmt.Errorf("pci: %d functions for %d: %w", len(s.Functions), h.plug, ErrState)
	}
	for i := range s.Functions {
		if err := h.slots[i].Load().fits(&s.Functions[i]); err != nil {
			return fmt.Errorf("pci: device %d: %w", i, err)
		}
	}
	h.address.Store(s.Address & addressMask)
	for i := range s.Functions {
		f := h.slots[i].Load()
		f.setState(&s.Functions[i])
		f.unmap(nil)
	}
	h.functions((*Function).mapAll)
	return nil
}

// State returns a copy of the registers of f.
func (f *Function) State() FunctionState {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state()
}

// SetState puts f into state s, which must come from a function of the same shape, and maps its BARs accordingly if it is
// on a bus. The error is [ErrState], and nothing has changed then. Bits that a guest could not have written are ignored.
func (f *Function) SetState(s FunctionState) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fits(&s); err != nil {
		return fmt.Errorf("pci: %w", err)
	}
	f.setState(&s)
	if f.host != nil {
		f.host.remap(f)
	}
	return nil
}

func (f *Function) state() FunctionState {
	s := FunctionState{Command: uint16(f.regs[regCommand])}
	copy(s.BARs[:], f.regs[regBAR0:])
	for i := range f.capabilities {
		c := &f.capabilities[i]
		body := f.body(make([]byte, 0, c.size), c)
		for j := range body {
			body[j] &= getByte(&f.writable, c.offset+2+j)
		}
		s.Capabilities = append(s.Capabilities, CapabilityState{Offset: uint8(c.offset), Body: body})
	}
	if f.msix != nil {
		m := f.msix.state()
		s.MSIX = &m
	}
	return s
}

// fits reports whether s has the shape of f.
func (f *Function) fits(s *FunctionState) error {
	if len(s.Capabilities) != len(f.capabilities) {
		return fmt.Errorf("%d capabilities for %d: %w", len(s.Capabilities), len(f.capabilities), ErrState)
	}
	for i, c := range f.capabilities {
		if o := s.Capabilities[i]; int(o.Offset) != c.offset || len(o.Body) != c.size {
			return fmt.Errorf("a capability of %d bytes at %#x for one of %d at %#x: %w",
				len(o.Body), o.Offset, c.size, c.offset, ErrState)
		}
	}
	switch {
	case (s.MSIX != nil) != (f.msix != nil):
		return fmt.Errorf("MSI-X on one side only: %w", ErrState)
	case f.msix != nil && len(s.MSIX.Table) != f.msix.Len():
		return fmt.Errorf("%d MSI-X vectors for %d: %w", len(s.MSIX.Table), f.msix.Len(), ErrState)
	}
	return nil
}

// setState takes over a state that fits, all but the mapping of BARs.
func (f *Function) setState(s *FunctionState) {
	set := func(i int, v uint32) { f.regs[i] = f.regs[i]&^f.writable[i] | v&f.writable[i] }
	set(regCommand, uint32(s.Command))
	for i, v := range s.BARs {
		set(regBAR0+i, v)
	}
	for i, c := range f.capabilities {
		for j, v := range s.Capabilities[i].Body {
			at := c.offset + 2 + j
			mask := getByte(&f.writable, at)
			setByte(&f.regs, at, getByte(&f.regs, at)&^mask|v&mask)
		}
	}
	if f.msix != nil {
		f.msix.setState(s.MSIX)
	}
}

func (m *MSIX) state() MSIXState {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := MSIXState{Control: m.control, Table: make([]MSIXEntry, len(m.vectors))}
	for i := range s.Table {
		s.Table[i] = m.entry(i)
		s.Table[i].Pending = m.pending(i)
	}
	return s
}

// setState disables everything, so that nothing from before stays pending, and then enables what s does.
func (m *MSIX) setState(s *MSIXState) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.setControl(0)
	for i, e := range s.Table {
		m.setEntry(i, e)
	}
	m.setControl(s.Control & msixWritable)
	for i, e := range s.Table {
		if e.Pending && m.enabled.Load() {
			m.vectors[i].v.Trigger()
		}
	}
}
