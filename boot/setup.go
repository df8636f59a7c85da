package boot

import (
	"bytes"
	"encoding/binary"
)

// Offsets into the first sectors of a bzImage and, the same, into the zero
// page: Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
const (
	offSetupSects        = 0x1f1
	offSysSize           = 0x1f4
	offBootFlag          = 0x1fe
	offJump              = 0x200
	offMagic             = 0x202
	offVersion           = 0x206
	offKernelVersion     = 0x20e
	offTypeOfLoader      = 0x210
	offLoadFlags         = 0x211
	offCode32Start       = 0x214
	offRamdiskImage      = 0x218
	offRamdiskSize       = 0x21c
	offExtLoaderVer      = 0x226
	offExtLoaderType     = 0x227
	offCmdLinePtr        = 0x228
	offInitrdAddrMax     = 0x22c
	offKernelAlignment   = 0x230
	offRelocatableKernel = 0x234
	offXLoadFlags        = 0x236
	offCmdlineSize       = 0x238
	offPayloadOffset     = 0x248
	offPayloadLength     = 0x24c
	offSetupData         = 0x250
	offPrefAddress       = 0x258
	offInitSize          = 0x260

	// setupHeaderMin is where the header of protocol 2.12 ends at the
	// earliest: behind init_size.
	setupHeaderMin = 0x264
	// setupHeaderMax is where the hole for it in struct boot_params ends.
	setupHeaderMax = 0x290

	sectorSize    = 512
	paragraphSize = 16
	bootFlagMagic = 0xaa55
	setupMagic    = "HdrS"
	// entry64 is the offset of the 64-bit entry in the protected-mode code.
	entry64 = 0x200
)

// LoadFlags are the bits of loadflags.
type LoadFlags uint8

// XLoadFlags are the bits of xloadflags.
type XLoadFlags uint16

// Bits of the setup header, named as in Linux's asm/bootparam.h.
const (
	LoadedHigh LoadFlags = 1 << 0 // LOADED_HIGH: a bzImage, not a zImage

	XLFKernel64           XLoadFlags = 1 << 0 // XLF_KERNEL_64: has the 64-bit entry
	XLFCanBeLoadedAbove4G XLoadFlags = 1 << 1 // XLF_CAN_BE_LOADED_ABOVE_4G
)

// Header is what the setup header of a bzImage says. All sizes and offsets
// are in bytes; those of parts of the file lie within it.
type Header struct {
	Version    uint16 // boot protocol: major<<8 | minor, at least 0x020c
	LoadFlags  LoadFlags
	XLoadFlags XLoadFlags

	SetupSize  int64 // real-mode part, where the protected-mode code begins in the file
	SystemSize int64 // protected-mode code (syssize)

	// PayloadOffset and PayloadLength delimit the compressed vmlinux in the
	// file; both are 0 where the header doesn't say.
	PayloadOffset int64
	PayloadLength int64

	InitrdAddrMax   uint32 // highest address that an initrd may occupy
	KernelAlignment uint32
	Relocatable     bool
	CmdlineSize     uint32 // longest command line, without its terminating zero
	PrefAddress     uint64 // guest-physical
	InitSize        uint32 // memory needed from where the kernel runs on

	// KernelVersion is the kernel's version string ("6.1.0-50-amd64 (...) #1
	// SMP ..."), empty where the image has none.
	KernelVersion string

	raw []byte // the file's first bytes, up to the end of the setup header
}

// Release returns the first word of KernelVersion, what `uname -r` prints.
func (h *Header) Release() string {
	release, _, _ := bytes.Cut([]byte(h.KernelVersion), []byte{' '})
	return string(release)
}

// minVersion is the first boot protocol with xloadflags, hence with a 64-bit
// entry.
const minVersion = 0x020c

// parseSetup reads the setup header. head holds the first bytes of img (at
// least up to the magic, which has been checked, and all there are up to
// setupHeaderMax).
func parseSetup(img Image, head []byte) (*Header, error) {
	le := binary.LittleEndian
	size := img.Size()
	if len(head) < setupHeaderMin {
		return nil, faultf(ErrTruncated, "truncated: it has %d bytes, a kernel's header alone has %d", size, setupHeaderMin)
	}
	if f := le.Uint16(head[offBootFlag:]); f != bootFlagMagic {
		return nil, faultf(ErrMalformed, "malformed setup header: boot flag %#04x instead of %#04x", f, bootFlagMagic)
	}
	h := &Header{
		Version:         le.Uint16(head[offVersion:]),
		LoadFlags:       LoadFlags(head[offLoadFlags]),
		XLoadFlags:      XLoadFlags(le.Uint16(head[offXLoadFlags:])),
		SetupSize:       (int64(head[offSetupSects]) + 1) * sectorSize,
		SystemSize:      int64(le.Uint32(head[offSysSize:])) * paragraphSize,
		InitrdAddrMax:   le.Uint32(head[offInitrdAddrMax:]),
		KernelAlignment: le.Uint32(head[offKernelAlignment:]),
		Relocatable:     head[offRelocatableKernel] != 0,
		CmdlineSize:     le.Uint32(head[offCmdlineSize:]),
		PrefAddress:     le.Uint64(head[offPrefAddress:]),
		InitSize:        le.Uint32(head[offInitSize:]),
	}
	if head[offSetupSects] == 0 {
		h.SetupSize = 5 * sectorSize
	}
	switch {
	case h.Version < minVersion:
		return nil, faultf(ErrUnsupported, "boot protocol %d.%02d is too old: a 64-bit entry needs 2.12 (Linux 3.8)", h.Version>>8, h.Version&0xff)
	case h.LoadFlags&LoadedHigh == 0:
		return nil, faultf(ErrUnsupported, "a zImage, to be loaded low; only a bzImage can be booted")
	case h.XLoadFlags&XLFKernel64 == 0:
		return nil, faultf(ErrWrongArch, "an i386 kernel (no 64-bit entry, XLF_KERNEL_64 clear)")
	}
	end := offMagic + int(head[offJump+1])
	if head[offJump] != 0xeb || end < setupHeaderMin || end > setupHeaderMax {
		return nil, faultf(ErrMalformed, "malformed setup header: its jump % x does not lead to its end", head[offJump:offJump+2])
	}
	if len(head) < end {
		return nil, faultf(ErrTruncated, "truncated: it has %d bytes, its header alone %d", size, end)
	}
	h.raw = bytes.Clone(head[:end])
	if h.SystemSize <= entry64 {
		return nil, faultf(ErrMalformed, "malformed setup header: %d bytes of code (syssize) do not reach the 64-bit entry", h.SystemSize)
	}
	if want := h.SetupSize + h.SystemSize; size < want {
		return nil, faultf(ErrTruncated, "truncated: it has %d bytes, its header says at least %d", size, want)
	}
	if a := h.KernelAlignment; a&(a-1) != 0 {
		return nil, faultf(ErrMalformed, "malformed setup header: kernel_alignment %#x is not a power of two", a)
	}
	off, n := int64(le.Uint32(head[offPayloadOffset:])), int64(le.Uint32(head[offPayloadLength:]))
	if off != 0 {
		if off+n > h.SystemSize {
			return nil, faultf(ErrMalformed, "malformed setup header: payload at %#x with %d bytes is outside the %d bytes of code", off, n, h.SystemSize)
		}
		h.PayloadOffset, h.PayloadLength = h.SetupSize+off, n
	}
	h.KernelVersion = kernelVersion(img, int64(le.Uint16(head[offKernelVersion:])), h.SetupSize)
	return h, nil
}

// kernelVersion reads the version string, which the header's pointer (less
// 0x200) places in the real-mode part. An unreadable one is no reason to
// refuse a kernel.
func kernelVersion(img Image, ptr, setupSize int64) string {
	off := ptr + 0x200
	if ptr == 0 || off >= setupSize {
		return ""
	}
	buf := make([]byte, min(256, setupSize-off))
	if readFull(img, buf, off) != nil {
		return ""
	}
	s, _, ok := bytes.Cut(buf, []byte{0})
	if !ok {
		return ""
	}
	for _, c := range s {
		if c < ' ' || c > '~' {
			return ""
		}
	}
	return string(s)
}
