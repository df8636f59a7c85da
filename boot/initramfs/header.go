package initramfs

import (
	"encoding/hex"
	"fmt"
	"io/fs"
)

// The newc header: a six byte magic and thirteen fields of eight hexadecimal
// digits, in this order (buffer-format.rst, "cpio header").
const (
	magicNewc   = "070701"
	magicCRC    = "070702"
	headerSize  = 110
	trailerName = "TRAILER!!!"
)

const (
	fieldIno = iota
	fieldMode
	fieldUID
	fieldGID
	fieldNlink
	fieldMtime
	fieldFileSize
	fieldMajor
	fieldMinor
	fieldRdevMajor
	fieldRdevMinor
	fieldNameSize
	fieldCheck
	fieldCount
)

// What the kernel takes (init/initramfs.c, include/linux/limits.h and
// include/linux/kdev_t.h). PATH_MAX counts the final NUL.
const (
	// MaxName is the length of the longest name and of the longest symbolic
	// link target, in bytes.
	MaxName = 4096 - 1
	// MaxComponent is the length of the longest part of a name between two
	// slashes, in bytes.
	MaxComponent = 255
	// MaxFileSize is the size of the largest file, in bytes.
	MaxFileSize = 1<<32 - 1

	maxMajor = 1<<12 - 1
	maxMinor = 1<<20 - 1
)

// File types and mode bits (include/uapi/linux/stat.h).
const (
	sIFMT   = 0o170000
	sIFSOCK = 0o140000
	sIFLNK  = 0o120000
	sIFREG  = 0o100000
	sIFBLK  = 0o060000
	sIFDIR  = 0o040000
	sIFCHR  = 0o020000
	sIFIFO  = 0o010000
	sISUID  = 0o4000
	sISGID  = 0o2000
	sISVTX  = 0o1000
)

// pad4 is the number of bytes from n to the next multiple of four.
func pad4(n int64) int64 { return -n & 3 }

// appendHeader appends the header, the name and its padding. dst must be
// aligned to four bytes in the archive.
func appendHeader(dst []byte, field [fieldCount]uint32, name string) []byte {
	field[fieldNameSize] = uint32(len(name) + 1)
	dst = append(dst, magicNewc...)
	for _, v := range field {
		be := [4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}
		dst = hex.AppendEncode(dst, be[:])
	}
	dst = append(dst, name...)
	dst = append(dst, 0)
	return appendPad(dst, headerSize+int64(len(name))+1)
}

// appendPad appends the zeroes that must follow n bytes.
func appendPad(dst []byte, n int64) []byte {
	return append(dst, make([]byte, pad4(n))...)
}

// parseFields decodes the thirteen fields that follow the magic.
func parseFields(hdr []byte) (field [fieldCount]uint32, err error) {
	for i := range field {
		var be [4]byte
		digits := hdr[len(magicNewc)+8*i:][:8]
		if _, err := hex.Decode(be[:], digits); err != nil {
			return field, fmt.Errorf("header field %d is %q, which is not a hexadecimal number", i, digits)
		}
		field[i] = uint32(be[0])<<24 | uint32(be[1])<<16 | uint32(be[2])<<8 | uint32(be[3])
	}
	return field, nil
}

// unixMode translates a mode to the kernel's numbers; ok is false for a type
// that a file system entry cannot have.
func unixMode(m fs.FileMode) (mode uint32, ok bool) {
	mode = uint32(m.Perm())
	if m&fs.ModeSetuid != 0 {
		mode |= sISUID
	}
	if m&fs.ModeSetgid != 0 {
		mode |= sISGID
	}
	if m&fs.ModeSticky != 0 {
		mode |= sISVTX
	}
	switch m.Type() {
	case 0:
		return mode | sIFREG, true
	case fs.ModeDir:
		return mode | sIFDIR, true
	case fs.ModeSymlink:
		return mode | sIFLNK, true
	case fs.ModeDevice:
		return mode | sIFBLK, true
	case fs.ModeDevice | fs.ModeCharDevice:
		return mode | sIFCHR, true
	case fs.ModeNamedPipe:
		return mode | sIFIFO, true
	case fs.ModeSocket:
		return mode | sIFSOCK, true
	}
	return 0, false
}

// goMode is the inverse of unixMode. A type that the kernel does not know
// comes back as fs.ModeIrregular.
func goMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	if mode&sISUID != 0 {
		m |= fs.ModeSetuid
	}
	if mode&sISGID != 0 {
		m |= fs.ModeSetgid
	}
	if mode&sISVTX != 0 {
		m |= fs.ModeSticky
	}
	switch mode & sIFMT {
	case sIFREG:
	case sIFDIR:
		m |= fs.ModeDir
	case sIFLNK:
		m |= fs.ModeSymlink
	case sIFBLK:
		m |= fs.ModeDevice
	case sIFCHR:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case sIFIFO:
		m |= fs.ModeNamedPipe
	case sIFSOCK:
		m |= fs.ModeSocket
	default:
		m |= fs.ModeIrregular
	}
	return m
}
