package boot

import (
	"fmt"

	"github.com/vole-vmm/vole/memory"
)

// Params says what to boot and what the machine is like.
type Params struct {
	Kernel     Image
	KernelName string // for errors; empty takes the image's own
	// Dense says that few pages of an ELF kernel's segments hold only zeroes, as
	// in the form that boot/kernel's cache keeps: they are read straight into
	// guest memory, without a look for such pages.
	Dense bool

	// Initrd are the parts of the initial RAM disk, one behind the other,
	// each padded with zeroes to a multiple of 4 bytes.
	Initrd     []Image
	InitrdName string

	Cmdline string

	// ACPI are the tables, written to ACPIAddr as they are; they and their
	// successors end below 1 MiB. RSDP is the guest-physical address of the
	// root pointer in them, 0 if the kernel shall look for it itself.
	ACPI []byte
	RSDP uint64

	// Reserved are more ranges that the memory map calls reserved. They must
	// not overlap RAM or each other.
	Reserved []Range

	// ForceELF64 enters an ELF kernel in 64-bit mode even if it has a PVH
	// entry.
	ForceELF64 bool
	// HugeIdentity1G maps the first 4 GiB by 1 GiB pages, which saves
	// touching four pages. The CPU must know them.
	HugeIdentity1G bool
}

// Protocol is the way a kernel is entered.
type Protocol string

// The protocols that [Load] chooses from.
const (
	ProtocolBzImage64 Protocol = "bzimage-64"
	ProtocolPVH       Protocol = "pvh"
	ProtocolELF64     Protocol = "elf64"
)

// Entry is the state in which the boot CPU enters the kernel. Interrupts are
// disabled, segment registers hold the Selector constants, and every register
// not named here is zero.
type Entry struct {
	Protocol Protocol
	// Long is set where the CPU is in long mode, with paging by CR3; it is in
	// protected mode without paging otherwise.
	Long bool

	RIP, RBX, RSI, RSP uint64

	CR3      uint64 // 0 unless Long
	GDTBase  uint64
	GDTLimit uint16

	// Kernel and InitrdRange are what was loaded where, the kernel including
	// the memory that it needs to unpack itself or for its bss.
	Kernel      Range
	InitrdRange Range
}

// Limits that an ELF kernel has no header to tell.
const (
	// elfCmdlineMax is COMMAND_LINE_SIZE of x86 less the terminating zero.
	elfCmdlineMax = 2047
	// oldCmdlineMax goes for a header that says 0.
	oldCmdlineMax = 255
)

// plan is everything Load does, decided and checked before the first write.
type plan struct {
	params Params
	entry  Entry
	header []byte // setup header of a bzImage
	reads  []read // parts of the files
	e820   []e820Entry
	ram    ram
	kernel Range
	initrd Range

	initrdMax  uint64 // highest address that the initrd may occupy
	cmdlineMax uint32 // longest command line

	kernelName, initrdName string
}

// Check tells whether Load would succeed for a guest with memSize bytes of
// RAM, without such a guest. It reads only headers.
func Check(p Params, memSize uint64) error {
	m, err := ramOf(memSize)
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	_, err = newPlan(p, m)
	return err
}

// Load writes the kernel and all that it needs into mem and returns how to
// enter it. RAM must be fresh: what is zero in the files (and a kernel's bss)
// is not written. Parts of files are read straight into RAM. When Load fails
// after it began to write (a file that shrinks or can't be read), mem has no
// defined content.
//
// Besides the errors of [Check] there are those of reading the files.
func Load(mem *memory.Guest, p Params) (Entry, error) {
	m, err := ramIn(mem)
	if err != nil {
		return Entry{}, fmt.Errorf("boot: %w", err)
	}
	pl, err := newPlan(p, m)
	if err != nil {
		return Entry{}, err
	}
	if err := pl.write(mem); err != nil {
		return Entry{}, err
	}
	return pl.entry, nil
}

func newPlan(p Params, m ram) (*plan, error) {
	pl := &plan{params: p, ram: m}
	pl.kernelName = imageName(p.Kernel, p.KernelName, "kernel")
	pl.initrdName = "initrd"
	if len(p.Initrd) > 0 {
		pl.initrdName = imageName(p.Initrd[0], p.InitrdName, "initrd")
	}
	if p.Kernel == nil {
		return nil, fmt.Errorf("boot: %w", faultf(ErrParams, "no kernel image"))
	}
	k, err := probe(p.Kernel)
	if err == nil {
		err = pl.placeKernel(k)
	}
	if err != nil {
		return nil, about(pl.kernelName, err)
	}
	if err := pl.placeInitrd(); err != nil {
		return nil, about(pl.initrdName, err)
	}
	if err := pl.checkCmdline(); err != nil {
		return nil, fmt.Errorf("boot: command line: %w", err)
	}
	if err := pl.checkACPI(); err != nil {
		return nil, fmt.Errorf("boot: ACPI tables: %w", err)
	}
	if pl.e820, err = m.e820(p.Reserved); err != nil {
		return nil, fmt.Errorf("boot: memory map: %w", err)
	}
	pl.entry.Kernel, pl.entry.InitrdRange = pl.kernel, pl.initrd
	return pl, nil
}

func (p *plan) placeKernel(k kernel) error {
	if k.kind == BzImage {
		return p.placeBzImage(k.setup)
	}
	return p.placeELF(k.elf)
}

// placeBzImage puts the protected-mode code where the kernel prefers to be.
// A 64-bit kernel runs there in any case unless it is loaded above, so no
// other place needs less memory.
func (p *plan) placeBzImage(h *Header) error {
	addr := h.PrefAddress
	if h.Relocatable {
		addr = max(addr, KernelMin)
		if a := uint64(h.KernelAlignment); a > 0 && addr < memory.HighStart {
			addr = alignUp(addr, a)
		}
	}
	if addr < KernelMin {
		return faultf(ErrMalformed, "malformed setup header: it wants to be at %#x, below 1 MiB, and is not relocatable", addr)
	}
	need := max(uint64(h.InitSize), uint64(h.SystemSize))
	if addr > p.ram.low || need > p.ram.low-addr {
		return faultf(ErrTooBig, "the kernel needs %s from %#x on, the guest has memory up to %#x", mib(need), addr, p.ram.low)
	}
	p.kernel = Range{GPA: addr, Size: need}
	p.reads = []read{{name: p.kernelName, img: p.params.Kernel, off: h.SetupSize, gpa: addr, size: uint64(h.SystemSize)}}
	p.header = h.raw
	p.initrdMax = uint64(h.InitrdAddrMax)
	p.cmdlineMax = h.CmdlineSize
	if p.cmdlineMax == 0 {
		p.cmdlineMax = oldCmdlineMax
	}
	p.entry = longEntry(ProtocolBzImage64, addr+entry64)
	return nil
}

// placeELF takes the segments where they ask to be.
func (p *plan) placeELF(f *elfFile) error {
	for _, s := range f.segments {
		switch {
		case s.paddr < KernelMin:
			return faultf(ErrMalformed, "malformed ELF: a segment at %#x, below 1 MiB, where boot structures are", s.paddr)
		case s.paddr > p.ram.low || s.memsz > p.ram.low-s.paddr:
			return faultf(ErrTooBig, "a segment of %s at %#x is outside memory, which ends at %#x", mib(s.memsz), s.paddr, p.ram.low)
		}
		if s.filesz > 0 {
			p.reads = append(p.reads, read{name: p.kernelName, img: p.params.Kernel, off: int64(s.off), gpa: s.paddr, size: s.filesz, sparse: !p.params.Dense})
		}
	}
	first, last := f.segments[0], f.segments[len(f.segments)-1]
	p.kernel = Range{GPA: first.paddr, Size: last.paddr + last.memsz - first.paddr}
	p.initrdMax = memory.HighStart - 1
	p.cmdlineMax = elfCmdlineMax
	if f.hasPVH && !p.params.ForceELF64 {
		if !f.loads(f.pvh) {
			return faultf(ErrMalformed, "malformed ELF: its PVH entry %#x is in no segment", f.pvh)
		}
		p.entry = Entry{Protocol: ProtocolPVH, RIP: f.pvh, RBX: StartInfoAddr, RSP: StackTop, GDTBase: GDTAddr, GDTLimit: gdtSize - 1}
		return nil
	}
	rip, ok := f.physical(f.entry)
	if !ok {
		return faultf(ErrMalformed, "malformed ELF: its entry %#x is in no segment", f.entry)
	}
	p.entry = longEntry(ProtocolELF64, rip)
	return nil
}

func longEntry(proto Protocol, rip uint64) Entry {
	return Entry{
		Protocol: proto, Long: true, RIP: rip, RSI: ZeroPageAddr, RSP: StackTop,
		CR3: PageTableAddr, GDTBase: GDTAddr, GDTLimit: gdtSize - 1,
	}
}

// placeInitrd puts the initrd as high as it may be, above the kernel.
func (p *plan) placeInitrd() error {
	var size uint64
	var parts []read
	for i, img := range p.params.Initrd {
		if img == nil || img.Size() < 0 {
			return faultf(ErrParams, "part %d is no image", i)
		}
		n := uint64(img.Size())
		// The sum can't wrap: each part is below 1<<63 and the total is kept
		// below 4 GiB.
		if size+n > p.ram.low {
			return faultf(ErrTooBig, "an initrd of at least %s is larger than the guest's memory below 4 GiB, %s", mib(size+n), mib(p.ram.low))
		}
		name := imageName(img, p.params.InitrdName, p.initrdName)
		parts = append(parts, read{name: name, img: img, gpa: size, size: n})
		size = alignUp(size+n, 4)
	}
	if size == 0 {
		return nil
	}
	top := min(p.ram.low, p.initrdMax+1)
	end := p.kernel.GPA + p.kernel.Size
	if top < end || size > top-end || (top-size)&^(pageSize-1) < end {
		return faultf(ErrTooBig, "an initrd of %s does not fit between the kernel, which ends at %#x, and %#x", mib(size), end, top)
	}
	p.initrd = Range{GPA: (top - size) &^ (pageSize - 1), Size: size}
	for i := range parts {
		parts[i].gpa += p.initrd.GPA
	}
	p.reads = append(p.reads, parts...)
	return nil
}

func (p *plan) checkCmdline() error {
	limit := min(uint64(p.cmdlineMax), cmdlineEnd-CmdlineAddr-1)
	if n := uint64(len(p.params.Cmdline)); n > limit {
		return faultf(ErrCmdline, "%d bytes are too long, the kernel takes %d", n, limit)
	}
	for i := range len(p.params.Cmdline) {
		if p.params.Cmdline[i] == 0 {
			return faultf(ErrCmdline, "byte %d is zero", i)
		}
	}
	return nil
}

func (p *plan) checkACPI() error {
	n := uint64(len(p.params.ACPI))
	if n > KernelMin-ACPIAddr {
		return faultf(ErrParams, "%d bytes are more than the %d below 1 MiB", n, KernelMin-ACPIAddr)
	}
	if r := p.params.RSDP; r != 0 && n > 0 && (r < ACPIAddr || r >= ACPIAddr+n) {
		return faultf(ErrParams, "the RSDP address %#x is outside of them", r)
	}
	return nil
}

// loads reports whether guest-physical addr is in the file content of a
// segment.
func (f *elfFile) loads(addr uint64) bool {
	for _, s := range f.segments {
		if addr >= s.paddr && addr-s.paddr < s.filesz {
			return true
		}
	}
	return false
}

// mib prints a size in bytes for people.
func mib(n uint64) string {
	if n < 1<<20 {
		return fmt.Sprintf("%d bytes", n)
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}

// write does what the plan says.
func (p *plan) write(mem *memory.Guest) error {
	for _, s := range p.structures() {
		err := guarded(func() error {
			_, err := mem.WriteAt(s.data, int64(s.gpa))
			return err
		})
		if err != nil {
			return fmt.Errorf("boot: %s: %w", s.what, err)
		}
	}
	return readAll(mem, p.reads)
}

// structure is a piece of memory that the loader makes up itself.
type structure struct {
	what string
	gpa  uint64
	data []byte
}

func (p *plan) structures() []structure {
	ss := []structure{
		{"GDT", GDTAddr, gdt(p.entry.Long)},
		{"command line", CmdlineAddr, append([]byte(p.params.Cmdline), 0)},
	}
	if len(p.params.ACPI) > 0 {
		ss = append(ss, structure{"ACPI tables", ACPIAddr, p.params.ACPI})
	}
	if p.entry.Protocol == ProtocolPVH {
		return append(ss, structure{"start_info", StartInfoAddr, p.startInfo()})
	}
	return append(ss,
		structure{"page tables", PageTableAddr, identity(PageTableAddr, p.params.HugeIdentity1G)},
		structure{"zero page", ZeroPageAddr, p.zeroPage(p.header)})
}
