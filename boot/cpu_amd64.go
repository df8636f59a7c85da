package boot

import "encoding/binary"

// Selectors into the table at [Entry].GDTBase, the numbers of the boot
// protocol (__BOOT_CS, __BOOT_DS). The descriptors are flat: base 0, limit
// 4 GiB; the code segment is a 64-bit one where Entry.Long is set and a
// 32-bit one otherwise. The TSS descriptor is a busy one with limit 0x67.
const (
	SelectorCode = 0x10
	SelectorData = 0x18
	SelectorTSS  = 0x20
)

// TSSLimit is the limit of the segment that SelectorTSS names; its base is 0.
const TSSLimit = 0x67

// Descriptors: Intel SDM volume 3, sections 3.4.5, 5.2.1 and 8.2.3.
const (
	gdtCode64 = 0x00af_9b00_0000_ffff
	gdtCode32 = 0x00cf_9b00_0000_ffff
	gdtData   = 0x00cf_9300_0000_ffff
	gdtTSS    = 0x0000_8b00_0000_0000 | TSSLimit

	gdtSize = 0x30 // a TSS descriptor takes 16 bytes in long mode
)

// gdt returns the descriptor table.
func gdt(long bool) []byte {
	le := binary.LittleEndian
	b := make([]byte, gdtSize)
	code := uint64(gdtCode32)
	if long {
		code = gdtCode64
	}
	le.PutUint64(b[SelectorCode:], code)
	le.PutUint64(b[SelectorData:], gdtData)
	le.PutUint64(b[SelectorTSS:], gdtTSS)
	return b
}

// Bits of a paging-structure entry: Intel SDM volume 3, section 4.5.4.
// Accessed and dirty are set beforehand, so that no page walk writes them.
const (
	ptePresent  = 1 << 0
	pteWrite    = 1 << 1
	pteAccessed = 1 << 5
	pteDirty    = 1 << 6
	ptePageSize = 1 << 7

	pteTable = ptePresent | pteWrite | pteAccessed
	ptePage  = pteTable | pteDirty | ptePageSize
)

// identity returns page tables, to be placed at base, that map the first
// 4 GiB onto themselves: 6 pages of them with 2 MiB pages, 2 with 1 GiB pages
// (which the CPU must have: CPUID 0x80000001, EDX bit 26).
func identity(base uint64, huge bool) []byte {
	const tables = 4 // one for each GiB
	le := binary.LittleEndian
	pages := 2
	if !huge {
		pages += tables
	}
	b := make([]byte, pages*pageSize)
	le.PutUint64(b, base+pageSize|pteTable)
	pdpt := b[pageSize:]
	for i := range uint64(tables) {
		if huge {
			le.PutUint64(pdpt[i*8:], i<<30|ptePage)
			continue
		}
		le.PutUint64(pdpt[i*8:], base+(2+i)*pageSize|pteTable)
		pd := b[(2+i)*pageSize:]
		for j := range uint64(512) {
			le.PutUint64(pd[j*8:], i<<30|j<<21|ptePage)
		}
	}
	return b
}
