package boot

import (
	"bytes"
	"encoding/binary"
)

// bz describes a small bzImage; its zero value (by newBz) is a good one.
type bz struct {
	setupSects  byte
	version     uint16
	loadFlags   byte
	xloadFlags  uint16
	initrdMax   uint32
	align       uint32
	relocatable byte
	cmdlineSize uint32
	pref        uint64
	initSize    uint32
	jump        [2]byte
	bootFlag    uint16
	payload     [2]uint32 // offset and length
	release     string
	code        []byte // a multiple of 16 bytes
}

func newBz() bz {
	code := make([]byte, 0x800)
	for i := range code {
		code[i] = byte(i)*7 + 1
	}
	return bz{
		setupSects: 5, version: 0x020f, loadFlags: 1, xloadFlags: 0x7f,
		initrdMax: 0x7fffffff, align: 0x100000, relocatable: 1, cmdlineSize: 2047,
		pref: 0x200000, initSize: 0x3000, jump: [2]byte{0xeb, 0x6a}, bootFlag: 0xaa55,
		payload: [2]uint32{0x300, 0x100}, release: "6.1.0-test (a@b) #1 SMP", code: code,
	}
}

func (z bz) with(f func(*bz)) bz { f(&z); return z }

func (z bz) bytes() []byte {
	le := binary.LittleEndian
	sects := int(z.setupSects)
	if sects == 0 {
		sects = 4
	}
	b := make([]byte, (sects+1)*512)
	// What a loader must not take into the zero page: the sentinel at 0x1ef
	// and what precedes it.
	for i := range 0x1f1 {
		b[i] = 0xff
	}
	b[0x1f1] = z.setupSects
	le.PutUint16(b[0x1f2:], 1)
	le.PutUint32(b[0x1f4:], uint32(len(z.code)/16))
	le.PutUint16(b[0x1fa:], 0xffff)
	le.PutUint16(b[0x1fe:], z.bootFlag)
	copy(b[0x200:], z.jump[:])
	copy(b[0x202:], "HdrS")
	le.PutUint16(b[0x206:], z.version)
	le.PutUint16(b[0x20e:], 0x600-0x200)
	b[0x211] = z.loadFlags
	le.PutUint32(b[0x214:], 0x100000)
	le.PutUint32(b[0x22c:], z.initrdMax)
	le.PutUint32(b[0x230:], z.align)
	b[0x234] = z.relocatable
	b[0x235] = 0x15
	le.PutUint16(b[0x236:], z.xloadFlags)
	le.PutUint32(b[0x238:], z.cmdlineSize)
	le.PutUint32(b[0x248:], z.payload[0])
	le.PutUint32(b[0x24c:], z.payload[1])
	le.PutUint64(b[0x250:], 0xdeadbeef) // setup_data: not the file's to set
	le.PutUint64(b[0x258:], z.pref)
	le.PutUint32(b[0x260:], z.initSize)
	// 0x26c is where the header ends: this must not reach the zero page.
	for i := 0x26c; i < 0x290; i++ {
		b[i] = 0xee
	}
	copy(b[0x600:], z.release+"\x00")
	return append(b, z.code...)
}

func (z bz) image() *bytes.Reader { return bytes.NewReader(z.bytes()) }

// seg is a program header of an ELF under construction and its content.
type seg struct {
	typ           uint32
	off           uint64 // 0: placed by the builder
	vaddr, paddr  uint64
	filesz, memsz uint64 // 0: the length of data
	align         uint64
	data          []byte
}

type elfImage struct {
	class, data   byte
	typ, machine  uint16
	entry, phoff  uint64
	phentsize     uint16
	phnum         int // -1: len(segs)
	segs          []seg
	noFit         bool // cut the file behind the headers
	trailingBytes int
}

func pattern(n int, start byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = start + byte(i%200)
	}
	return b
}

// note returns one ELF note.
func note(name string, typ uint32, desc []byte) []byte {
	le := binary.LittleEndian
	b := make([]byte, 12)
	le.PutUint32(b, uint32(len(name)))
	le.PutUint32(b[4:], uint32(len(desc)))
	le.PutUint32(b[8:], typ)
	pad := func() {
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	b = append(b, name...)
	pad()
	b = append(b, desc...)
	pad()
	return b
}

func le64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }
func le32(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }

func pvhNotes(entry uint64) []byte {
	return append(note("Xen\x00", 6, []byte("linux\x00")), note("Xen\x00", 18, le64(entry))...)
}

// newELF is shaped like a vmlinux: text, per-CPU data at virtual address 0,
// data with a bss, notes.
func newELF() elfImage {
	return elfImage{
		class: 2, data: 1, typ: 2, machine: 62, entry: 0x200000, phoff: 64, phentsize: 56, phnum: -1,
		segs: []seg{
			{typ: 1, vaddr: 0xffffffff81200000, paddr: 0x200000, data: pattern(0x1800, 1)},
			{typ: 1, vaddr: 0, paddr: 0x202000, data: pattern(0x100, 7)},
			{typ: 1, vaddr: 0xffffffff81203000, paddr: 0x203000, memsz: 0x5000, data: append(make([]byte, 0x2000), pattern(0x123, 9)...)},
			{typ: 4, data: pvhNotes(0x200040)},
		},
	}
}

func (e elfImage) with(f func(*elfImage)) elfImage {
	e.segs = append([]seg(nil), e.segs...)
	f(&e)
	return e
}

func (e elfImage) bytes() []byte {
	le := binary.LittleEndian
	num := e.phnum
	if num < 0 {
		num = len(e.segs)
	}
	b := make([]byte, 64+56*len(e.segs))
	copy(b, "\x7fELF")
	b[4], b[5], b[6] = e.class, e.data, 1
	le.PutUint16(b[16:], e.typ)
	le.PutUint16(b[18:], e.machine)
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[24:], e.entry)
	le.PutUint64(b[32:], e.phoff)
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[54:], e.phentsize)
	le.PutUint16(b[56:], uint16(num))
	for i, s := range e.segs {
		if s.off == 0 {
			s.off = uint64(len(b))
		}
		if s.filesz == 0 {
			s.filesz = uint64(len(s.data))
		}
		if s.memsz == 0 {
			s.memsz = s.filesz
		}
		ph := b[64+56*i:]
		le.PutUint32(ph, s.typ)
		le.PutUint32(ph[4:], 7)
		le.PutUint64(ph[8:], s.off)
		le.PutUint64(ph[16:], s.vaddr)
		le.PutUint64(ph[24:], s.paddr)
		le.PutUint64(ph[32:], s.filesz)
		le.PutUint64(ph[40:], s.memsz)
		le.PutUint64(ph[48:], s.align)
		if !e.noFit {
			b = append(b, s.data...)
		}
	}
	return append(b, make([]byte, e.trailingBytes)...)
}

func (e elfImage) image() *bytes.Reader { return bytes.NewReader(e.bytes()) }
