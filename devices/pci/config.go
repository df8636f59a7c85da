package pci

// readConfig fills p, 1 to 4 bytes that do not leave a dword, from configuration space.
func (f *Function) readConfig(reg int, p []byte) {
	if reg > lastConfigByte {
		clear(p) // extended space: no capability
		return
	}
	var body []byte
	c := f.activeAt(reg, len(p))
	f.mu.Lock()
	v := f.regs[reg/4]
	if c != nil {
		body = f.body(make([]byte, 0, c.size), c)
	}
	f.mu.Unlock()

	if m := f.msix; m != nil && reg/4 == m.reg {
		v |= uint32(m.readControl()) << 16
	}
	v >>= reg % 4 * 8
	for i := range p {
		p[i] = uint8(v >> (i * 8))
	}
	if c != nil {
		off, q := c.clip(reg, p)
		c.handler.ReadCapability(body, off, q)
	}
}

// writeConfig writes p, 1 to 4 bytes that do not leave a dword, to configuration space. All of p takes effect at once.
func (f *Function) writeConfig(reg int, p []byte) {
	if reg > lastConfigByte {
		return
	}
	var v, enable uint32
	for i, b := range p {
		shift := (reg%4 + i) * 8
		v |= uint32(b) << shift
		enable |= 0xff << shift
	}
	i := reg / 4
	var body []byte
	c := f.activeAt(reg, len(p))

	f.mu.Lock()
	mask := f.writable[i] & enable
	old := f.regs[i]
	f.regs[i] = old&^mask | v&mask
	if f.regs[i] != old && (i == regCommand || i >= regBAR0 && i < regBAR0+numBARs) {
		f.host.remap(f)
	}
	if c != nil {
		body = f.body(make([]byte, 0, c.size), c)
	}
	f.mu.Unlock()

	if m := f.msix; m != nil && i == m.reg {
		m.writeControl(uint16(v>>16), uint16(enable>>16))
	}
	if c != nil {
		off, q := c.clip(reg, p)
		c.handler.WriteCapability(body, off, q)
	}
}
