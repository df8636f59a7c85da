package boot

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"unicode/utf8"
)

// Kind is the file format of a kernel.
type Kind int

const (
	// BzImage is the compressed image that distributions ship as vmlinuz.
	BzImage Kind = iota + 1
	// ELF is an uncompressed vmlinux.
	ELF
)

func (k Kind) String() string {
	switch k {
	case BzImage:
		return "bzImage"
	case ELF:
		return "ELF"
	}
	return fmt.Sprintf("Kind(%d)", int(k))
}

// probeSize is how much of a file tells what it is: all of the setup header,
// and the magic of a tar archive.
const probeSize = 1024

// Probe says whether img is a kernel that [Load] can boot as far as its
// headers tell. The Header is that of a bzImage and nil for an ELF. Errors wrap
// ErrEmpty, ErrNotKernel, ErrWrongArch, ErrUnsupported, ErrMalformed or
// ErrTruncated and say what was found instead.
func Probe(img Image) (Kind, *Header, error) {
	k, err := probe(img)
	if err != nil {
		return 0, nil, about(imageName(img, "", "kernel"), err)
	}
	return k.kind, k.setup, nil
}

// kernel is a kernel image whose headers have been read and checked.
type kernel struct {
	kind  Kind
	setup *Header  // of a bzImage
	elf   *elfFile // of an ELF
}

func probe(img Image) (kernel, error) {
	size := img.Size()
	if size <= 0 {
		return kernel{}, faultf(ErrEmpty, "the file is empty")
	}
	head := make([]byte, min(probeSize, size))
	if err := readFull(img, head, 0); err != nil {
		return kernel{}, err
	}
	switch {
	case hasAt(head, 0, elfMagic):
		f, err := parseELF(img, head)
		return kernel{kind: ELF, elf: f}, err
	case hasAt(head, offMagic, setupMagic):
		h, err := parseSetup(img, head)
		return kernel{kind: BzImage, setup: h}, err
	}
	return kernel{}, identify(head, size)
}

func hasAt(b []byte, off int, magic string) bool {
	return len(b) >= off+len(magic) && string(b[off:off+len(magic)]) == magic
}

// otherKernels are the images of other architectures, which have their magic
// numbers in fixed places.
var otherKernels = []struct {
	off   int
	magic string
	what  string
}{
	{0x38, "ARM\x64", "an arm64 Image"},
	{0x24, "\x18\x28\x6f\x01", "a 32-bit ARM zImage"},
	{0x30, "RISCV\x00\x00\x00", "a RISC-V Image"},
	{0x38, "RSC\x05", "a RISC-V Image"},
	{0x38, "\xcd\x23\x82\x81", "a LoongArch or other EFI Image"},
	{0x00, "\x27\x05\x19\x56", "a U-Boot image"},
}

// otherFiles are files that are given in a kernel's place by mistake.
var otherFiles = []struct {
	off   int
	magic string
	what  string
}{
	{0, "\x1f\x8b", "a gzip file"},
	{0, "\x28\xb5\x2f\xfd", "a zstd file"},
	{0, "\xfd7zXZ\x00", "an xz file"},
	{0, "BZh", "a bzip2 file"},
	{0, "\x02\x21\x4c\x18", "an LZ4 file"},
	{0, "\x04\x22\x4d\x18", "an LZ4 file"},
	{0, "\x89LZO\x00", "an lzop file"},
	{0, "\x5d\x00\x00", "an LZMA file"},
	{0, "!<arch>\ndebian-binary", "a Debian package"},
	{0, "!<arch>\n", "an ar archive"},
	{0, "\xed\xab\xee\xdb", "an RPM package"},
	{0, "PK\x03\x04", "a zip archive"},
	{257, "ustar", "a tar archive"},
	{0, "070701", "a cpio archive, perhaps an initrd"},
	{0, "070702", "a cpio archive, perhaps an initrd"},
	{0, "\xc7\x71", "a cpio archive, perhaps an initrd"},
	{0, "hsqs", "a squashfs image"},
	{0, "QFI\xfb", "a qcow2 disk image"},
	{0, "KDMV", "a VMDK disk image"},
	{0, "vhdxfile", "a VHDX disk image"},
	{0, "conectix", "a VHD disk image"},
	{0, "\xfe\xed\xfa", "a Mach-O program"},
	{0, "\xcf\xfa\xed\xfe", "a Mach-O program"},
	{0, "#!", "a script"},
}

// identify names what is there instead of a kernel.
func identify(head []byte, size int64) error {
	// First, because newer x86 kernels share a magic number with others.
	if hasAt(head, 0, "MZ") && len(head) < offMagic+len(setupMagic) {
		return faultf(ErrTruncated, "truncated: it has %d bytes, a kernel's header alone has %d", size, setupHeaderMin)
	}
	for _, o := range otherKernels {
		if hasAt(head, o.off, o.magic) {
			return faultf(ErrWrongArch, "%s, not an x86-64 kernel", o.what)
		}
	}
	for _, o := range otherFiles {
		if hasAt(head, o.off, o.magic) {
			return notKernel("%s", o.what)
		}
	}
	switch {
	case hasAt(head, 0, "MZ\x00\x00zimg"):
		return notKernel("a compressed EFI image (zboot)")
	case hasAt(head, 0, "MZ"):
		return identifyPE(head)
	case len(bytes.Trim(head, "\x00")) == 0 && int64(len(head)) == size:
		return notKernel("a file of zero bytes only")
	case isText(head):
		return notKernel("a text file")
	case len(head) >= sectorSize && binary.LittleEndian.Uint16(head[offBootFlag:]) == bootFlagMagic:
		return notKernel("a boot sector or disk image with no HdrS magic at 0x202")
	}
	return notKernel("no HdrS magic at 0x202 and no ELF header")
}

// identifyPE tells EFI programs apart by the machine in their COFF header.
func identifyPE(head []byte) error {
	le := binary.LittleEndian
	off := uint64(le.Uint32(head[0x3c:]))
	if off+6 > uint64(len(head)) || !hasAt(head, int(off), "PE\x00\x00") {
		return notKernel("a DOS program with no HdrS magic at 0x202")
	}
	switch m := le.Uint16(head[off+4:]); m {
	case 0x8664:
		return notKernel("an EFI program (or a unified kernel image) with no HdrS magic at 0x202")
	case 0xaa64:
		return faultf(ErrWrongArch, "an EFI image for arm64, not an x86-64 kernel")
	default:
		return faultf(ErrWrongArch, "an EFI image for machine %#04x, not an x86-64 kernel", m)
	}
}

// isText reports whether b could be the beginning of a text in ASCII or UTF-8.
func isText(b []byte) bool {
	// The last character may be cut.
	for i := 0; i < utf8.UTFMax-1 && len(b) > 0 && b[len(b)-1] >= utf8.RuneSelf; i++ {
		b = b[:len(b)-1]
	}
	if !utf8.Valid(b) {
		return false
	}
	for _, c := range b {
		if c < ' ' && c != '\n' && c != '\r' && c != '\t' && c != '\f' && c != 0x1b || c == 0x7f {
			return false
		}
	}
	return true
}
