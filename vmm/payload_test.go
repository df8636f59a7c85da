package vmm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"slices"
	"testing"

	"github.com/vole-vmm/vole/boot"
	"github.com/vole-vmm/vole/kvm"
)

// payloadBase is where payloads are loaded and entered, in 64-bit mode.
const payloadBase = 0x10_0000

// payload makes a kernel of code: an ELF file with one segment.
func payload(code ...[]byte) boot.Image {
	text := slices.Concat(code...)
	var b bytes.Buffer
	le := func(v any) { _ = binary.Write(&b, binary.LittleEndian, v) }
	const headers = 64 + 56
	b.WriteString("\x7fELF\x02\x01\x01")
	b.Write(make([]byte, 9))
	le([]uint16{2, 62})
	le(uint32(1))
	le([]uint64{payloadBase, 64, 0})
	le(uint32(0))
	le([]uint16{64, 56, 1, 0, 0, 0})
	le([]uint32{1, 5})
	le([]uint64{headers, payloadBase, payloadBase, uint64(len(text)), uint64(len(text)), 1})
	b.Write(text)
	return bytes.NewReader(b.Bytes())
}

// Pieces of 64-bit code.
func outb(port uint16, v byte) []byte {
	return []byte{0x66, 0xba, byte(port), byte(port >> 8), 0xb0, v, 0xee} // mov dx; mov al; out
}

func inb(port uint16) []byte {
	return []byte{0x66, 0xba, byte(port), byte(port >> 8), 0xec}
}

func say(s string) []byte {
	var code []byte
	for _, c := range []byte(s) {
		code = append(code, outb(com1Port, c)...)
	}
	return code
}

func debugExit(v byte) []byte { return outb(debugExitPort, v) }

func powerOff() []byte { return outb(powerPort+powerSleepControl, 1<<5|5<<2) }

// store8 writes v to a guest-physical address below 4 GiB.
func store8(addr uint32, v byte) []byte {
	return append(binary.LittleEndian.AppendUint32([]byte{0xbf}, addr), 0xc6, 0x07, v) // mov edi; mov byte [rdi]
}

var (
	spin   = []byte{0xeb, 0xfe}       // jmp .
	halt   = []byte{0xf4, 0xeb, 0xfd} // hlt; jmp back
	cli    = []byte{0xfa}
	triple = []byte{0x0f, 0x01, 0x1d, 0xf9, 0xff, 0x0f, 0x00, 0x0f, 0x0b} // lidt of zeroes is what the reset IDT is; ud2
)

// needKVM skips a test where there is no KVM, and fails it where
// VOLE_REQUIRE_KVM says that there must be.
func needKVM(t testing.TB) {
	t.Helper()
	sys, err := kvm.Open("")
	if err == nil {
		sys.Close()
		return
	}
	if os.Getenv("VOLE_REQUIRE_KVM") != "" {
		t.Fatalf("VOLE_REQUIRE_KVM is set: %v", err)
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		t.Skipf("needs KVM: %v", err)
	}
	t.Fatal(err)
}
