package acpi

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// errAML is wrapped by every error of the encoder: what was asked for cannot be
// written in AML.
var errAML = errors.New("acpi: not encodable as AML")

// A term is a piece of encoded AML, or the first error met while encoding it.
// Terms nest as ASL does: what takes terms hands on their errors, so that only
// the outermost one has to be asked.
type term struct {
	b   []byte
	err error
}

func badTerm(format string, args ...any) term {
	return term{err: fmt.Errorf("%w: %s", errAML, fmt.Sprintf(format, args...))}
}

func raw(b ...byte) term { return term{b: b} }

// join concatenates terms: a term list, or an opcode and its operands.
func join(terms ...term) term {
	n := 0
	for _, t := range terms {
		if t.err != nil {
			return t
		}
		n += len(t.b)
	}
	b := make([]byte, 0, n)
	for _, t := range terms {
		b = append(b, t.b...)
	}
	return term{b: b}
}

// Opcodes (ACPI 6.3, section 20.3).
const (
	opZero             = 0x00
	opOne              = 0x01
	opName             = 0x08
	opBytePrefix       = 0x0a
	opWordPrefix       = 0x0b
	opDWordPrefix      = 0x0c
	opStringPrefix     = 0x0d
	opQWordPrefix      = 0x0e
	opScope            = 0x10
	opBuffer           = 0x11
	opPackage          = 0x12
	opMethod           = 0x14
	opExt              = 0x5b
	opLocal0           = 0x60
	opArg0             = 0x68
	opStore            = 0x70
	opAnd              = 0x7b
	opOr               = 0x7d
	opNotify           = 0x86
	opCreateDWordField = 0x8a
	opLNot             = 0x92
	opLEqual           = 0x93
	opIf               = 0xa0
	opElse             = 0xa1
	opReturn           = 0xa4
	opOnes             = 0xff

	// Second byte after opExt.
	extOpRegion = 0x80
	extField    = 0x81
	extDevice   = 0x82
)

const (
	// maxPkgLength is the largest value that a PkgLength can have (28 bits).
	maxPkgLength = 1<<28 - 1
	// maxPackage is the most elements of a Package, whose count is a byte.
	maxPackage = 255
)

// pkgLengthBytes encodes v as a PkgLength (ACPI 6.3, section 20.2.4): up to 63 in
// six bits of one byte; larger in four bits of the first byte, the least
// significant ones, and one to three bytes after it. v must not be above
// maxPkgLength.
func pkgLengthBytes(v int) []byte {
	switch {
	case v < 1<<6:
		return []byte{byte(v)}
	case v < 1<<12:
		return []byte{1<<6 | byte(v&0xf), byte(v >> 4)}
	case v < 1<<20:
		return []byte{2<<6 | byte(v&0xf), byte(v >> 4), byte(v >> 12)}
	default:
		return []byte{3<<6 | byte(v&0xf), byte(v >> 4), byte(v >> 12), byte(v >> 20)}
	}
}

// pkgLength is the PkgLength that stands before payload bytes. It counts itself.
func pkgLength(payload int) term {
	for own := 1; own <= 4; own++ {
		if payload > maxPkgLength-own {
			break
		}
		if b := pkgLengthBytes(payload + own); len(b) == own {
			return raw(b...)
		}
	}
	return badTerm("a package of %d bytes is longer than %d", payload, maxPkgLength)
}

// pkg is op, a PkgLength and the joined terms.
func pkg(op term, terms ...term) term {
	body := join(terms...)
	if body.err != nil {
		return body
	}
	return join(op, pkgLength(len(body.b)), body)
}

// integer is v in the shortest encoding. The DSDT has revision 2, so integers
// have 64 bits and Ones is 64 ones.
func integer(v uint64) term {
	switch {
	case v == 0:
		return raw(opZero)
	case v == 1:
		return raw(opOne)
	case v == ^uint64(0):
		return raw(opOnes)
	default:
		return constant(v)
	}
}

// constant is v as a data constant with its prefix, never Zero, One or Ones.
func constant(v uint64) term {
	switch {
	case v <= 0xff:
		return raw(opBytePrefix, byte(v))
	case v <= 0xffff:
		return term{b: binary.LittleEndian.AppendUint16([]byte{opWordPrefix}, uint16(v))}
	case v <= 0xffffffff:
		return term{b: binary.LittleEndian.AppendUint32([]byte{opDWordPrefix}, uint32(v))}
	default:
		return term{b: binary.LittleEndian.AppendUint64([]byte{opQWordPrefix}, v)}
	}
}

// str is an ASCII string without NUL.
func str(s string) term {
	b := append(make([]byte, 0, len(s)+2), opStringPrefix)
	for i := range len(s) {
		if s[i] == 0 || s[i] > 0x7f {
			return badTerm("string %q: byte %d is not ASCII from 1 to 127", s, i)
		}
		b = append(b, s[i])
	}
	return term{b: append(b, 0)}
}

// buffer is a Buffer that is initialised with data.
func buffer(data []byte) term {
	return pkg(raw(opBuffer), integer(uint64(len(data))), term{b: data})
}

// packageOf is a Package of the given elements.
func packageOf(elements ...term) term {
	if len(elements) > maxPackage {
		return badTerm("a Package has at most %d elements, not %d", maxPackage, len(elements))
	}
	return pkg(raw(opPackage), raw(byte(len(elements))), join(elements...))
}

// scope opens an existing namespace object.
func scope(path string, body ...term) term {
	return pkg(raw(opScope), nameString(path), join(body...))
}

// device declares a Device.
func device(path string, body ...term) term {
	return pkg(raw(opExt, extDevice), nameString(path), join(body...))
}

// name declares a named object.
func name(path string, value term) term {
	return join(raw(opName), nameString(path), value)
}

const (
	maxMethodArgs        = 7
	methodSerializedFlag = 1 << 3
)

// method declares a serialised method of args arguments, which may create named
// objects.
func method(path string, args int, body ...term) term {
	if args < 0 || args > maxMethodArgs {
		return badTerm("method %s: a method has 0 to %d arguments, not %d", path, maxMethodArgs, args)
	}
	return pkg(raw(opMethod), nameString(path), raw(byte(args)|methodSerializedFlag), join(body...))
}

// regionSystemIO is the address space of an operation region (ACPI 6.3, section
// 19.6.100).
const regionSystemIO = 1

// opRegion declares an operation region of size bytes.
func opRegion(path string, space byte, offset, size uint64) term {
	return join(raw(opExt, extOpRegion), nameString(path), raw(space), integer(offset), integer(size))
}

// fieldByteAccess is the field flags' value for ByteAcc, NoLock, Preserve.
const fieldByteAccess = 1

// A fieldUnit is a named run of bits of a field; an empty name skips the bits.
type fieldUnit struct {
	name string
	bits int
}

// field declares units of the operation region, accessed by bytes.
func field(region string, units ...fieldUnit) term {
	list := make([]term, 0, 2*len(units))
	for _, u := range units {
		if u.bits < 0 || u.bits > maxPkgLength {
			return badTerm("field unit %q of %d bits", u.name, u.bits)
		}
		// The list holds a NameSeg, or a NUL for a gap, never a path.
		seg := raw(0)
		if u.name != "" {
			seg = nameSeg(u.name)
		}
		// Here the PkgLength counts bits, and not itself.
		list = append(list, seg, raw(pkgLengthBytes(u.bits)...))
	}
	return pkg(raw(opExt, extField), nameString(region), raw(fieldByteAccess), join(list...))
}

// ref refers to a named object, and calls it if it is a method without
// arguments.
func ref(path string) term { return nameString(path) }

// arg is argument object n of the method, 0 to 6.
func arg(n int) term {
	if n < 0 || n >= maxMethodArgs {
		return badTerm("there is no Arg%d", n)
	}
	return raw(opArg0 + byte(n))
}

// local0 is the method's first local variable.
func local0() term { return raw(opLocal0) }

// noTarget says that an operator's result is not stored.
func noTarget() term { return raw(opZero) }

func store(value, target term) term { return join(raw(opStore), value, target) }

func and(a, b, target term) term { return join(raw(opAnd), a, b, target) }

func or(a, b, target term) term { return join(raw(opOr), a, b, target) }

func lEqual(a, b term) term { return join(raw(opLEqual), a, b) }

func lNot(a term) term { return join(raw(opLNot), a) }

// ifThen is an If; an elseThen may follow it.
func ifThen(condition term, body ...term) term {
	return pkg(raw(opIf), condition, join(body...))
}

func elseThen(body ...term) term { return pkg(raw(opElse), body...) }

func returnValue(value term) term { return join(raw(opReturn), value) }

func notify(object string, value uint64) term {
	return join(raw(opNotify), nameString(object), constant(value))
}

// createDWordField names the 32 bits at byte offset of a buffer.
func createDWordField(source term, offset uint64, field string) term {
	return join(raw(opCreateDWordField), source, integer(offset), nameString(field))
}
