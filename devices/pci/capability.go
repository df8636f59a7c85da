package pci

import "fmt"

// CapabilityHandler answers for the active bytes of a capability. body is a copy of the whole body as the registers have
// it (for a write: after it), off is where p starts in the body, and p never leaves the active bytes, nor one dword. The
// methods are called on vCPU threads, possibly on several at once, with no lock held, and must not keep body or p.
type CapabilityHandler interface {
	// ReadCapability may change p, which holds what the registers have.
	ReadCapability(body []byte, off int, p []byte)
	// WriteCapability hears what the guest wrote, whether or not the registers keep it.
	WriteCapability(body []byte, off int, p []byte)
}

// capability is one entry of the list.
type capability struct {
	offset  int // of the ID; the body starts two bytes on
	size    int // of the body
	active  int // offset in configuration space of the first active byte
	activeN int
	handler CapabilityHandler // nil if nothing is active
}

// AddCapability appends a capability to the list and returns its offset in configuration space, a multiple of 4. body is
// what follows the ID and the link to the next one; writable has a 1 for each bit that a guest can change, and is as long
// as body, or nil. Both are copied. When the 192 bytes behind the header are used up the error is [ErrNoSpace].
func (f *Function) AddCapability(id uint8, body, writable []byte) (offset uint8, err error) {
	return f.addCapability(capability{}, id, body, writable)
}

// AddActiveCapability is [Function.AddCapability] with side effects: h takes part in each access to the n bytes of the
// body from first on.
func (f *Function) AddActiveCapability(id uint8, body, writable []byte, first, n int, h CapabilityHandler) (offset uint8, err error) {
	if h == nil || first < 0 || n <= 0 || n > len(body) || first > len(body)-n {
		return 0, invalid("capability %#x with %d active bytes from %d on of %d", id, n, first, len(body))
	}
	return f.addCapability(capability{active: f.free + 2 + first, activeN: n, handler: h}, id, body, writable)
}

func (f *Function) addCapability(c capability, id uint8, body, writable []byte) (uint8, error) {
	if err := f.building(fmt.Sprintf("add capability %#x", id)); err != nil {
		return 0, err
	}
	if writable != nil && len(writable) != len(body) {
		return 0, invalid("capability %#x with a mask of %d bytes for %d", id, len(writable), len(body))
	}
	if len(body) > configSize-2-f.free {
		return 0, fmt.Errorf("pci: capability %#x of %d bytes at %#x: %w", id, len(body)+2, f.free, ErrNoSpace)
	}
	c.offset, c.size = f.free, len(body)

	setByte(&f.regs, c.offset, id)
	for i, v := range body {
		setByte(&f.regs, c.offset+2+i, v)
	}
	for i, v := range writable {
		setByte(&f.writable, c.offset+2+i, v)
	}
	setByte(&f.regs, f.lastLink, uint8(c.offset))
	f.regs[regCommand] |= statusCapabilities

	f.lastLink = c.offset + 1
	f.free = (c.offset + 2 + len(body) + 3) &^ 3
	f.capabilities = append(f.capabilities, c)
	return uint8(c.offset), nil
}

// body appends the body of c to b. The caller holds the lock.
func (f *Function) body(b []byte, c *capability) []byte {
	for i := range c.size {
		b = append(b, getByte(&f.regs, c.offset+2+i))
	}
	return b
}

// activeAt returns the capability that has active bytes among the n from reg on, which do not leave a dword, or nil.
// There is at most one: no dword belongs to two capabilities.
func (f *Function) activeAt(reg, n int) *capability {
	for i := range f.capabilities {
		if c := &f.capabilities[i]; c.handler != nil && reg < c.active+c.activeN && c.active < reg+n {
			return c
		}
	}
	return nil
}

// clip returns the part of p, an access to reg, that is active, and where it starts in the body.
func (c *capability) clip(reg int, p []byte) (off int, q []byte) {
	from, to := max(reg, c.active), min(reg+len(p), c.active+c.activeN)
	return from - c.offset - 2, p[from-reg : to-reg]
}

func getByte(regs *[configSize / 4]uint32, off int) uint8 {
	return uint8(regs[off/4] >> (off % 4 * 8))
}

func setByte(regs *[configSize / 4]uint32, off int, v uint8) {
	shift := off % 4 * 8
	regs[off/4] = regs[off/4]&^(0xff<<shift) | uint32(v)<<shift
}
