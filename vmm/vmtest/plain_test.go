package vmtest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vole-vmm/vole/virtio"
	"github.com/vole-vmm/vole/vmm"
)

// closing is a device that notes whether it was closed. Nothing else of it is called.
type closing struct {
	virtio.Device
	is bool
}

func (c *closing) Type() virtio.Type { return virtio.TypeEntropy }
func (c *closing) Close() error      { c.is = true; return nil }

// Pieces of 64-bit code.
func outb(port uint16, v byte) []byte {
	return []byte{0x66, 0xba, byte(port), byte(port >> 8), 0xb0, v, 0xee} // mov dx; mov al; out
}

func say(s string) (code []byte) {
	for _, c := range []byte(s) {
		code = append(code, outb(0x3f8, c)...)
	}
	return code
}

// echo writes what comes from the console back to it, n bytes.
func echo(n byte) []byte {
	return []byte{
		0xb9, n, 0, 0, 0, // mov ecx, n
		0x66, 0xba, 0xfd, 0x03, // wait: mov dx, 0x3fd: line status
		0xec,       // in al, dx
		0xa8, 0x01, // test al, 1
		0x74, 0xf7, // jz wait
		0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
		0xec,       // in al, dx
		0xee,       // out dx, al
		0xff, 0xc9, // dec ecx
		0x75, 0xeb, // jnz wait
	}
}

var (
	powerOff  = outb(0x600, 0x34)
	debugExit = outb(0xf4, 9)
	forever   = []byte{0xeb, 0xfe}
)

// payload makes a kernel file of code.
func payload(t testing.TB, code ...[]byte) string {
	t.Helper()
	const base, headers = 1 << 20, 64 + 56
	text := slices.Concat(code...)
	var b bytes.Buffer
	le := func(v any) { require.NoError(t, binary.Write(&b, binary.LittleEndian, v)) }
	b.WriteString("\x7fELF\x02\x01\x01")
	b.Write(make([]byte, 9))
	le([]uint16{2, 62})
	le(uint32(1))
	le([]uint64{base, 64, 0})
	le(uint32(0))
	le([]uint16{64, 56, 1, 0, 0, 0})
	le([]uint32{1, 5})
	le([]uint64{headers, base, base, uint64(len(text)), uint64(len(text)), 1})
	b.Write(text)
	path := filepath.Join(t.TempDir(), "payload")
	require.NoError(t, os.WriteFile(path, b.Bytes(), 0o666))
	return path
}

// needKVM skips where /dev/kvm can't be opened: VOLE_REQUIRE_KVM makes that a failure.
func needKVM(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile(vmm.KVMDevice, os.O_RDWR, 0)
	if err == nil {
		f.Close()
		return
	}
	if missing := errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission); missing && os.Getenv("VOLE_REQUIRE_KVM") == "" {
		t.Skip("no /dev/kvm that can be opened: ", err)
	}
	t.Fatal(err)
}

// plain are the options of a machine for a payload.
func plain(kernel string) []Option {
	return []Option{Kernel(kernel), NoAgent(), AnyKVM(), Memory(4 << 20)}
}

// TestPlainMachine speaks to a payload on the real /dev/kvm.
func TestPlainMachine(t *testing.T) {
	needKVM(t)
	vm := Start(t, plain(payload(t, say("login: "), echo(5), say("\r\nbye\r\n"), powerOff))...)
	vm.Expect(`login: `)
	vm.Send("root\n")
	assert.Equal(t, []string{"root\n", "root"}, vm.Expect(`(\w+)\n`))
	vm.Expect(`(?m)^bye$`)
	assert.Equal(t, vmm.Poweroff, vm.Wait().Reason)
	assert.Equal(t, "login: root\n\nbye\n", vm.Console())
	assert.Nil(t, vm.Failure())
	assert.NotNil(t, vm.Machine())
	vm.Shutdown() // it is
}

// TestPlainEndings: how tests of plain machines end.
func TestPlainEndings(t *testing.T) {
	needKVM(t)
	for name, tc := range map[string]struct {
		code   [][]byte
		opts   []Option
		f      func(v *VM)
		failed bool
		want   string
	}{
		"closed while it runs": {[][]byte{say("x"), forever}, nil, func(v *VM) { v.Expect("x") }, false, ""},
		"closed at once":       {[][]byte{forever}, nil, func(*VM) {}, false, ""},
		"ends by itself":       {[][]byte{debugExit}, nil, func(v *VM) { <-v.Machine().Done() }, false, ""},
		"a timeout": {[][]byte{forever}, []Option{Timeout(50 * time.Millisecond)}, func(v *VM) { <-v.Machine().Done() },
			true, "the guest has ended: timeout"},
		"a timeout that was waited for": {[][]byte{forever}, []Option{Timeout(50 * time.Millisecond)}, func(v *VM) { v.Wait() }, false, ""},
		"a triple fault":                {[][]byte{{0x0f, 0x0b}}, nil, func(v *VM) { <-v.Machine().Done() }, true, "the guest has ended: triple-fault"},
		"an end too early": {[][]byte{say("one\n"), debugExit}, nil, func(v *VM) { v.Expect("two") },
			true, `expect "two" on the console: the guest has ended: debug-exit 9`},
		"no button": {[][]byte{say("x"), forever}, nil, func(v *VM) { v.Shutdown() }, true, "its power button was pressed"},
		"no agent":  {[][]byte{forever}, nil, func(v *VM) { v.Command("x") }, true, "has no agent"},
	} {
		t.Run(name, func(t *testing.T) {
			fake := runFake(t, time.Now().Add(2*time.Second), func(ft *fakeTB) {
				tc.f(Start(ft, append(plain(payload(t, tc.code...)), tc.opts...)...))
			})
			assert.Equal(t, tc.failed, fake.failed, fake.said())
			assert.Contains(t, fake.said(), tc.want)
		})
	}
}

// TestPVMIsNoKVM: where the processor shows no virtualization, stock kernels are not tried.
func TestPVMIsNoKVM(t *testing.T) {
	needKVM(t)
	v, _, err := vmm.CPUVirtualization()
	require.NoError(t, err)
	if v != vmm.NoVirtualization {
		require.NoError(t, usableKVM(false))
		return
	}
	require.ErrorContains(t, usableKVM(false), "PVM")
	require.NoError(t, usableKVM(true))
}

func BenchmarkPlainMachine(b *testing.B) {
	needKVM(b)
	kernel := payload(b, powerOff)
	b.ReportAllocs()
	for b.Loop() {
		v := Start(b, plain(kernel)...)
		v.Wait()
	}
}
