package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"slices"
	"testing"
)

// payloadBase is where payloads are loaded and entered, in 64-bit mode.
const payloadBase = 0x10_0000

// Ports of the machine, as DESIGN.md's address map has them.
const (
	portCOM1  = 0x3f8
	portDebug = 0xf4
	portI8042 = 0x64
	portSleep = 0x600
)

// payload is a kernel: an ELF file whose one segment is that code.
func payload(code ...[]byte) []byte {
	text := slices.Concat(code...)
	const headers = 64 + 56
	var b bytes.Buffer
	b.WriteString("\x7fELF\x02\x01\x01")
	b.Write(make([]byte, 9))
	for _, v := range []any{
		[]uint16{2 /* ET_EXEC */, 62 /* EM_X86_64 */}, uint32(1),
		[]uint64{payloadBase, 64, 0}, uint32(0), []uint16{64, 56, 1, 0, 0, 0},
		[]uint32{1 /* PT_LOAD */, 5}, []uint64{headers, payloadBase, payloadBase, uint64(len(text)), uint64(len(text)), 1},
	} {
		_ = binary.Write(&b, binary.LittleEndian, v) // a bytes.Buffer takes all
	}
	b.Write(text)
	return b.Bytes()
}

func outb(port uint16, v byte) []byte {
	return []byte{0x66, 0xba, byte(port), byte(port >> 8), 0xb0, v, 0xee} // mov dx, port; mov al, v; out dx, al
}

func say(s string) []byte {
	var code []byte
	for _, c := range []byte(s) {
		code = append(code, outb(portCOM1, c)...)
	}
	return code
}

func powerOff() []byte        { return append(outb(portSleep, 1<<5|5<<2), halt...) }
func reset() []byte           { return append(outb(portI8042, 0xfe), halt...) }
func debugExit(v byte) []byte { return append(outb(portDebug, v), halt...) }

var (
	halt = []byte{0xfa, 0xf4, 0xeb, 0xfc} // cli; hlt; jmp back
	// tripleFault loads an IDT of no length, from zeroes on the stack's page, and faults.
	tripleFault = []byte{
		0xbf, 0x00, 0x00, 0x20, 0x00, // mov edi, 0x200000
		0x0f, 0x01, 0x1f, // lidt [rdi]
		0x0f, 0x0b, // ud2
	}
)

// echo writes what comes in on COM1 out on it; 'q' powers off.
func echo() []byte { return echoUntil(powerOff()) }

// echoUntil is echo with another end.
func echoUntil(end []byte) []byte {
	code := []byte{
		0x66, 0xba, 0xfd, 0x03, // mov dx, 0x3fd
		0xec,       // in al, dx
		0xa8, 0x01, // test al, 1
		0x74, 0xf7, // jz to the mov
		0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
		0xec,      // in al, dx
		0x3c, 'q', // cmp al, 'q'
		0x74, 0x03, // je over the next two
		0xee,       // out dx, al
		0xeb, 0xeb, // jmp to the first mov
	}
	return append(code, end...)
}

// flood writes "x" without end.
func flood() []byte {
	return []byte{
		0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
		0xb0, 'x', // mov al, 'x'
		0xee,       // out dx, al
		0xeb, 0xfd, // jmp to the out
	}
}

// needKVM skips a test where there is no KVM, and fails it where VOLE_REQUIRE_KVM says that there
// must be.
func needKVM(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	switch {
	case err == nil:
		f.Close()
	case os.Getenv("VOLE_REQUIRE_KVM") != "":
		t.Fatalf("VOLE_REQUIRE_KVM is set: %v", err)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
		t.Skipf("needs KVM: %v", err)
	default:
		t.Fatal(err)
	}
}

// machineArgs are `run` flags for a small machine with that code for a kernel. The initrd keeps the
// built-in guest out, which needs a static test binary.
func machineArgs(t *testing.T, code []byte, more ...string) []string {
	t.Helper()
	needKVM(t)
	args := []string{"run", "-k", file(t, "payload", payload(code)), "-i", file(t, "initrd", []byte("unused")), "-m", "8M"}
	return append(args, more...)
}
