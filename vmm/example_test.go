package vmm_test

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"slices"
	"time"

	"github.com/vole-vmm/vole/vmm"
)

// Boot a kernel with an initrd, show its console, and learn how it ended. The
// README shows this too, and a test keeps the two alike.
func Example() {
	m, err := vmm.New(vmm.Config{
		Kernel:     "vmlinuz",
		Initrd:     "initrd.img",
		Cmdline:    vmm.DefaultCmdline + " quiet",
		Memory:     1 << 30,
		CPUs:       2,
		ConsoleOut: os.Stdout,
		Timeout:    time.Minute,
	})
	if err != nil {
		log.Fatal(err) // a bad Config (vmm.ErrConfig), or a host without KVM (vmm.ErrKVM)
	}
	defer m.Close()
	if err := m.Start(); err != nil {
		log.Fatal(err)
	}
	exit, err := m.Wait(context.Background())
	if err != nil {
		log.Fatal(err) // only a context that is done: the guest goes on
	}
	switch exit.Reason {
	case vmm.Poweroff:
		fmt.Println("the guest powered off")
	default: // Reset, Panic, TripleFault, DebugExit, Timeout, Killed, HostError
		fmt.Printf("the guest ended by %v; the last it said:\n%s", exit, m.ConsoleTail())
	}
}

// A kernel need not be Linux: an ELF file with a 64-bit entry will do, and need
// not be a file. This one says hello on the serial port and powers off.
func Example_payload() {
	if !haveKVM() {
		return
	}
	m, err := vmm.New(vmm.Config{
		KernelImage: bytes.NewReader(helloKernel()),
		Memory:      4 << 20,
		ConsoleOut:  os.Stdout,
		Timeout:     time.Minute,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer m.Close()
	if err := m.Start(); err != nil {
		fmt.Println(err)
		return
	}
	exit, err := m.Wait(context.Background())
	fmt.Println(exit, err)
	// Output:
	// hello from the guest
	// poweroff <nil>
}

// helloKernel is an ELF file with one segment, which is entered at its start in
// 64-bit mode.
func helloKernel() []byte {
	const base = 1 << 20 // nothing is loaded below 1 MiB
	code := []byte{
		0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8: COM1
		0xbe, 0x19, 0x00, 0x10, 0x00, // mov esi, text
		0xac,       // next: lodsb
		0x84, 0xc0, // test al, al
		0x74, 0x03, // jz off
		0xee,       // out dx, al
		0xeb, 0xf8, // jmp next
		0x66, 0xba, 0x00, 0x06, // off: mov dx, 0x600: ACPI sleep control
		0xb0, 0x34, // mov al, 0x34: S5
		0xee, // out dx, al
		0xf4, // hlt
	}
	code = append(code, "hello from the guest\n\x00"...)

	header := elf.Header64{
		Ident:     [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:      uint16(elf.ET_EXEC),
		Machine:   uint16(elf.EM_X86_64),
		Version:   uint32(elf.EV_CURRENT),
		Entry:     base,
		Phoff:     64,
		Ehsize:    64,
		Phentsize: 56,
		Phnum:     1,
	}
	segment := elf.Prog64{
		Type:   uint32(elf.PT_LOAD),
		Flags:  uint32(elf.PF_R | elf.PF_X),
		Off:    64 + 56,
		Vaddr:  base,
		Paddr:  base,
		Filesz: uint64(len(code)),
		Memsz:  uint64(len(code)),
		Align:  1,
	}
	var file bytes.Buffer
	_ = binary.Write(&file, binary.LittleEndian, header) // a Buffer takes everything
	_ = binary.Write(&file, binary.LittleEndian, segment)
	return slices.Concat(file.Bytes(), code)
}

// haveKVM reports whether this machine can run the example. An Example can't
// skip itself, so where it can't run it prints what it would have.
func haveKVM() bool {
	f, err := os.OpenFile(vmm.KVMDevice, os.O_RDWR, 0)
	if err == nil {
		f.Close()
		return true
	}
	missing := errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)
	if missing && os.Getenv("VOLE_REQUIRE_KVM") == "" {
		fmt.Println("hello from the guest\npoweroff <nil>")
		return false
	}
	return true
}
