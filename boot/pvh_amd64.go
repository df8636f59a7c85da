package boot

import "encoding/binary"

// The layout of struct hvm_start_info version 1, its module list and its
// memory map: Linux's include/xen/interface/hvm/start_info.h.
const (
	startInfoMagic   = 0x336ec578
	startInfoVersion = 1

	startInfoSize   = 56
	modlistOffset   = 0x40
	modlistSize     = 32
	memmapOffset    = 0x60
	memmapEntrySize = 24
)

// startInfo builds start_info, with what it points to, for [StartInfoAddr].
func (p *plan) startInfo() []byte {
	le := binary.LittleEndian
	b := make([]byte, memmapOffset+len(p.e820)*memmapEntrySize)
	le.PutUint32(b, startInfoMagic)
	le.PutUint32(b[4:], startInfoVersion)
	if p.initrd.Size > 0 {
		le.PutUint32(b[12:], 1)
		le.PutUint64(b[16:], StartInfoAddr+modlistOffset)
		mod := b[modlistOffset : modlistOffset+modlistSize]
		le.PutUint64(mod, p.initrd.GPA)
		le.PutUint64(mod[8:], p.initrd.Size)
	}
	le.PutUint64(b[24:], CmdlineAddr)
	le.PutUint64(b[32:], p.params.RSDP)
	le.PutUint64(b[40:], StartInfoAddr+memmapOffset)
	le.PutUint32(b[48:], uint32(len(p.e820)))
	for i, e := range p.e820 {
		d := b[memmapOffset+i*memmapEntrySize:]
		le.PutUint64(d, e.addr)
		le.PutUint64(d[8:], e.size)
		le.PutUint32(d[16:], e.typ)
	}
	return b
}
