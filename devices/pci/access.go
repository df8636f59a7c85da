package pci

import (
	"encoding/binary"

	"github.com/vole-vmm/vole/devices"
)

// ConfigPorts is the number of ports that configuration mechanism 1 takes, from 0xcf8 on.
const ConfigPorts = 8

const (
	configData    = 4       // the first data port, 0xcfc
	addressEnable = 1 << 31 // PCI 3.0, section 3.2.2.3.2
	addressMask   = addressEnable | 0x00ff_fffc
)

// ECAMSize is the length in bytes of what [Host.ECAM] answers for.
func (h *Host) ECAMSize() uint64 { return uint64(h.cfg.Buses) * busSize }

// ECAM is the configuration space as memory. What is not there reads as all ones. An access that crosses a dword counts
// as one for each dword.
func (h *Host) ECAM() devices.Handler { return ecam{h} }

type ecam struct{ h *Host }

func (e ecam) Read(off uint64, p []byte)  { e.h.read(off, p) }
func (e ecam) Write(off uint64, p []byte) { e.h.write(off, p) }

// Ports is the configuration space through ports 0xcf8 to 0xcff: a 32-bit address register and four ports of data. An
// access to the address register of any other size does nothing, and reads as all ones.
func (h *Host) Ports() devices.Handler { return ports{h} }

type ports struct{ h *Host }

func (d ports) Read(off uint64, p []byte) {
	if off == 0 && len(p) == 4 {
		binary.LittleEndian.PutUint32(p, d.h.address.Load())
	} else if at, ok := d.target(off, len(p)); ok {
		d.h.read(at, p)
	} else {
		ones(p)
	}
}

func (d ports) Write(off uint64, p []byte) {
	if off == 0 && len(p) == 4 {
		d.h.address.Store(binary.LittleEndian.Uint32(p) & addressMask)
	} else if at, ok := d.target(off, len(p)); ok {
		d.h.write(at, p)
	}
}

// target returns where in ECAM an access to n data ports goes.
func (d ports) target(off uint64, n int) (at uint64, ok bool) {
	a := uint64(d.h.address.Load())
	if a&addressEnable == 0 || off < configData || off > ConfigPorts || uint64(n) > ConfigPorts-off {
		return 0, false
	}
	return a&0x00ff_ff00<<4 | a&0xfc | (off - configData), true
}

func (h *Host) read(at uint64, p []byte) {
	for len(p) > 0 {
		n := min(len(p), int(4-at%4))
		if f := h.function(at); f != nil {
			f.readConfig(int(at%extendedSize), p[:n])
		} else {
			ones(p[:n])
		}
		at, p = at+uint64(n), p[n:]
	}
}

func (h *Host) write(at uint64, p []byte) {
	for len(p) > 0 {
		n := min(len(p), int(4-at%4))
		if f := h.function(at); f != nil {
			f.writeConfig(int(at%extendedSize), p[:n])
		}
		at, p = at+uint64(n), p[n:]
	}
}

// function returns what is at an offset of ECAM, or nil. It takes no lock: most of what a guest asks for is not there.
func (h *Host) function(at uint64) *Function {
	if at >= busSize || at&functionMask != 0 {
		return nil
	}
	return h.slots[at>>deviceShift].Load()
}

func ones(p []byte) {
	for i := range p {
		p[i] = 0xff
	}
}
