package boot

import "encoding/binary"

// Offsets of struct boot_params outside the setup header:
// Documentation/arch/x86/zero-page.rst.
const (
	zpACPIRSDPAddr    = 0x070
	zpExtRamdiskImage = 0x0c0
	zpExtRamdiskSize  = 0x0c4
	zpExtCmdLinePtr   = 0x0c8
	zpE820Entries     = 0x1e8
	zpE820Table       = 0x2d0

	e820EntrySize = 20

	// loaderUndefined is type_of_loader of a loader with no number of its own.
	loaderUndefined = 0xff
	// elfSetupVersion is the boot protocol whose zero page an ELF kernel gets.
	elfSetupVersion = 0x020f
)

// zeroPage builds struct boot_params. header is the kernel's own setup header
// (the file's first bytes up to the header's end), nil for an ELF.
func (p *plan) zeroPage(header []byte) []byte {
	le := binary.LittleEndian
	b := make([]byte, zeroPageSize)
	if header != nil {
		copy(b[offSetupSects:], header[offSetupSects:])
	} else {
		le.PutUint16(b[offBootFlag:], bootFlagMagic)
		copy(b[offMagic:], setupMagic)
		le.PutUint16(b[offVersion:], elfSetupVersion)
		b[offLoadFlags] = byte(LoadedHigh)
		le.PutUint32(b[offInitrdAddrMax:], uint32(p.initrdMax))
		le.PutUint32(b[offCmdlineSize:], p.cmdlineMax)
	}
	b[offTypeOfLoader] = loaderUndefined
	b[offExtLoaderVer], b[offExtLoaderType] = 0, 0
	le.PutUint32(b[offCode32Start:], uint32(p.kernel.GPA))
	le.PutUint64(b[offSetupData:], 0)
	put64(b, offCmdLinePtr, zpExtCmdLinePtr, CmdlineAddr)
	put64(b, offRamdiskImage, zpExtRamdiskImage, p.initrd.GPA)
	put64(b, offRamdiskSize, zpExtRamdiskSize, p.initrd.Size)
	le.PutUint64(b[zpACPIRSDPAddr:], p.params.RSDP)
	b[zpE820Entries] = byte(len(p.e820))
	for i, e := range p.e820 {
		d := b[zpE820Table+i*e820EntrySize:]
		le.PutUint64(d, e.addr)
		le.PutUint64(d[8:], e.size)
		le.PutUint32(d[16:], e.typ)
	}
	return b
}

// put64 writes a value whose upper half boot_params keeps elsewhere.
func put64(b []byte, low, high int, v uint64) {
	binary.LittleEndian.PutUint32(b[low:], uint32(v))
	binary.LittleEndian.PutUint32(b[high:], uint32(v>>32))
}
