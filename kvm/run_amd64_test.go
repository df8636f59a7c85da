package kvm

import (
	"io/fs"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestPortExit(t *testing.T) {
	tests := []struct {
		name  string
		mode  mode
		code  []byte
		port  uint16
		out   bool
		size  int
		count int
		data  []byte // what the guest writes, or what it is given
	}{
		{"out byte", realMode, []byte{
			0xb0, 0x42, // mov al, 0x42
			0xba, 0xf8, 0x03, // mov dx, 0x3f8
			0xee, // out dx, al
			0xf4, // hlt
		}, testPort, true, 1, 1, []byte{0x42}},
		{"out word", realMode, []byte{
			0xb8, 0x34, 0x12, // mov ax, 0x1234
			0xba, 0xf8, 0x03,
			0xef, // out dx, ax
			0xf4,
		}, testPort, true, 2, 1, []byte{0x34, 0x12}},
		{"out dword", protectedMode, []byte{
			0xb8, 0x78, 0x56, 0x34, 0x12, // mov eax, 0x12345678
			0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
			0xef, // out dx, eax
			0xf4,
		}, testPort, true, 4, 1, []byte{0x78, 0x56, 0x34, 0x12}},
		{"out to an immediate port", longMode, []byte{
			0xb0, 0x07, // mov al, 7
			0xe6, 0xf4, // out 0xf4, al
			0xf4,
		}, 0xf4, true, 1, 1, []byte{7}},
		{"in byte", realMode, []byte{
			0xba, 0xf8, 0x03,
			0xec,       // in al, dx
			0x3c, 0x5a, // cmp al, 0x5a
			0x74, 0x02, // je +2
			0x0f, 0x0b, // ud2
			0xf4,
		}, testPort, false, 1, 1, []byte{0x5a}},
		{"in dword", longMode, []byte{
			0x66, 0xba, 0xf8, 0x03,
			0xed,                         // in eax, dx
			0x3d, 0x78, 0x56, 0x34, 0x12, // cmp eax, 0x12345678
			0x74, 0x02,
			0x0f, 0x0b,
			0xf4,
		}, testPort, false, 4, 1, []byte{0x78, 0x56, 0x34, 0x12}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(t, tt.mode, tt.code)
			m.requireReason(t, ReasonIO)
			port, out, size, count, data := m.cpu.IO()
			assert.Equal(t, tt.port, port)
			assert.Equal(t, tt.out, out)
			assert.Equal(t, tt.size, size)
			assert.Equal(t, tt.count, count)
			require.Len(t, data, size*count)
			if out {
				assert.Equal(t, tt.data, data)
			} else {
				copy(data, tt.data)
			}
			_, _, mmio := m.cpu.MMIO()
			assert.Nil(t, mmio, "MMIO decodes a port exit")
			m.requireReason(t, ReasonHLT)
		})
	}
}

func TestPortString(t *testing.T) {
	m := newMachine(t, protectedMode, []byte{
		0xbe, 0x00, 0x30, 0x00, 0x00, // mov esi, 0x3000
		0xb9, 0x05, 0x00, 0x00, 0x00, // mov ecx, 5
		0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
		0xf3, 0x6e, // rep outsb
		0xf4, // hlt
	})
	copy(m.mem[0x3000:], "hello")
	var got []byte
	for {
		r := m.run(t)
		if r == ReasonHLT {
			break
		}
		require.Equal(t, ReasonIO, r)
		port, out, size, count, data := m.cpu.IO()
		require.EqualValues(t, testPort, port)
		require.True(t, out)
		require.Equal(t, 1, size)
		require.Len(t, data, count)
		got = append(got, data...)
	}
	assert.Equal(t, "hello", string(got))
}

func TestMMIOExit(t *testing.T) {
	tests := []struct {
		name  string
		mode  mode
		code  []byte
		addr  uint64
		write bool
		data  []byte
	}{
		{"write byte", realMode, []byte{
			0xb0, 0x42, // mov al, 0x42
			0xa2, 0x10, 0x00, // mov [0x10], al
			0xf4,
		}, testMMIO + 0x10, true, []byte{0x42}},
		{"write dword", protectedMode, []byte{
			0xc7, 0x05, 0x04, 0x00, 0x00, 0xc0, 0x78, 0x56, 0x34, 0x12, // mov dword [0xc0000004], 0x12345678
			0xf4,
		}, testMMIO + 4, true, []byte{0x78, 0x56, 0x34, 0x12}},
		{"write qword", longMode, []byte{
			0x48, 0xbb, 0x00, 0x00, 0x00, 0xc0, 0, 0, 0, 0, // mov rbx, 0xc0000000
			0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, // mov rax, 0x0807060504030201
			0x48, 0x89, 0x03, // mov [rbx], rax
			0xf4,
		}, testMMIO, true, []byte{1, 2, 3, 4, 5, 6, 7, 8}},
		{"read word", realMode, []byte{
			0xa1, 0x20, 0x00, // mov ax, [0x20]
			0x3d, 0x34, 0x12, // cmp ax, 0x1234
			0x74, 0x02, // je +2
			0x0f, 0x0b, // ud2
			0xf4,
		}, testMMIO + 0x20, false, []byte{0x34, 0x12}},
		{"read dword", longMode, []byte{
			0xbb, 0x00, 0x00, 0x00, 0xc0, // mov ebx, 0xc0000000
			0x8b, 0x43, 0x08, // mov eax, [rbx+8]
			0x3d, 0x78, 0x56, 0x34, 0x12, // cmp eax, 0x12345678
			0x74, 0x02,
			0x0f, 0x0b,
			0xf4,
		}, testMMIO + 8, false, []byte{0x78, 0x56, 0x34, 0x12}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(t, tt.mode, tt.code)
			m.requireReason(t, ReasonMMIO)
			addr, write, data := m.cpu.MMIO()
			assert.Equal(t, tt.addr, addr)
			assert.Equal(t, tt.write, write)
			require.Len(t, data, len(tt.data))
			if write {
				assert.Equal(t, tt.data, data)
			} else {
				copy(data, tt.data)
			}
			_, _, _, count, pio := m.cpu.IO()
			assert.Zero(t, count, "IO decodes a memory exit")
			assert.Nil(t, pio)
			m.requireReason(t, ReasonHLT)
		})
	}
}

func TestTripleFault(t *testing.T) {
	tests := []struct {
		name string
		mode mode
		code []byte
	}{
		// Real mode has no limit to its interrupt table where KVM emulates it,
		// so this one takes the step into protected mode.
		{"from real mode", realMode, []byte{
			0x0f, 0x20, 0xc0, // mov eax, cr0
			0x0c, 0x01, // or al, 1
			0x0f, 0x22, 0xc0, // mov cr0, eax
			0x0f, 0x0b, // ud2
		}},
		{"protected mode", protectedMode, []byte{0x0f, 0x0b}},
		{"long mode", longMode, []byte{0x0f, 0x0b}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(t, tt.mode, tt.code)
			m.requireReason(t, ReasonShutdown)
		})
	}
}

func TestInterruptedExitIsNotHandledTwice(t *testing.T) {
	m := newMachine(t, realMode, []byte{
		0xba, 0xf8, 0x03, // mov dx, 0x3f8
		0xec,       // in al, dx
		0x3c, 0x5a, // cmp al, 0x5a
		0x74, 0x02, // je +2
		0x0f, 0x0b, // ud2
		0xf4, // hlt
	})
	require.NoError(t, m.sys.Require(CapImmediateExit))
	m.requireReason(t, ReasonIO)
	_, _, _, _, data := m.cpu.IO()
	data[0] = 0x5a

	m.cpu.SetImmediateExit(true)
	for range 3 {
		r, err := m.cpu.Run()
		require.NoError(t, err)
		require.Equal(t, ReasonInterrupted, r)
		_, _, _, count, data := m.cpu.IO()
		assert.Zero(t, count, "the exit of before shows again")
		assert.Nil(t, data)
	}
	regs, err := m.cpu.Regs()
	require.NoError(t, err)
	assert.EqualValues(t, 0x5a, regs.RAX&0xff, "the access in flight was not completed")

	m.cpu.SetImmediateExit(false)
	m.requireReason(t, ReasonHLT)
}

// spin is a guest that never exits by itself.
var spin = []byte{0xeb, 0xfe} // jmp $

func TestKick(t *testing.T) {
	m := newMachine(t, realMode, spin)
	tid, pid := unix.Gettid(), unix.Getpid()
	for range 20 {
		kicked := make(chan error, 1)
		go func() {
			m.cpu.SetImmediateExit(true)
			kicked <- unix.Tgkill(pid, tid, unix.SIGURG)
		}()
		for {
			r, err := m.cpu.Run()
			require.NoError(t, err)
			require.Equal(t, ReasonInterrupted, r)
			select {
			case err := <-kicked:
				require.NoError(t, err)
			default:
				continue
			}
			break
		}
		m.cpu.SetImmediateExit(false)
	}
}

func TestCloseDuringRun(t *testing.T) {
	m := newMachine(t, realMode, []byte{0xf4})
	// What Run does around KVM_RUN; a guest that is really inside would leave
	// it whenever Go's own signals come, and make this a race.
	m.cpu.state.Store(vcpuRunning)
	assert.ErrorIs(t, m.cpu.Close(), ErrBusy)
	_, err := m.cpu.Run()
	assert.ErrorIs(t, err, ErrBusy)
	m.cpu.state.Store(vcpuIdle)
	m.requireReason(t, ReasonHLT)
}

func TestUseAfterClose(t *testing.T) {
	m := newMachine(t, realMode, []byte{0xf4})
	require.NoError(t, m.cpu.Close())
	require.NoError(t, m.cpu.Close(), "a second Close")
	_, err := m.cpu.Run()
	assert.ErrorIs(t, err, fs.ErrClosed)
	_, err = m.cpu.Regs()
	assert.ErrorIs(t, err, fs.ErrClosed)
	m.cpu.SetImmediateExit(true)
	assert.Zero(t, m.cpu.DrainCoalesced(func(uint64, []byte, bool) {}))
	_, _, _, count, _ := m.cpu.IO()
	assert.Zero(t, count)

	require.NoError(t, m.vm.Close())
	require.NoError(t, m.vm.Close())
	assert.ErrorIs(t, m.vm.CreateIRQChip(), fs.ErrClosed)
	_, err = m.vm.CreateVCPU(1)
	assert.ErrorIs(t, err, fs.ErrClosed)

	require.NoError(t, m.sys.Close())
	require.NoError(t, m.sys.Close())
	_, err = m.sys.CreateVM()
	assert.ErrorIs(t, err, fs.ErrClosed)
}

func TestExitPathDoesNotAllocate(t *testing.T) {
	m := newMachine(t, realMode, portLoop)
	n := testing.AllocsPerRun(200, func() {
		r, err := m.cpu.Run()
		if err != nil {
			panic(err)
		}
		if r == ReasonIO {
			_, _, _, _, data := m.cpu.IO()
			_ = data[0]
		}
		m.cpu.SetImmediateExit(false)
	})
	assert.Zero(t, n, "port exit")

	m = newMachine(t, realMode, mmioLoop)
	n = testing.AllocsPerRun(200, func() {
		r, err := m.cpu.Run()
		if err != nil {
			panic(err)
		}
		if r == ReasonMMIO {
			_, _, data := m.cpu.MMIO()
			_ = data[0]
		}
	})
	assert.Zero(t, n, "memory exit")

	m = newMachine(t, realMode, []byte{0xf4}, (*VM).CreateIRQChip)
	level := false
	n = testing.AllocsPerRun(200, func() {
		level = !level
		if err := m.vm.IRQLine(4, level); err != nil {
			panic(err)
		}
		if _, err := m.vm.SignalMSI(MSI{Address: 0xfee00000, Data: 0x30}); err != nil {
			panic(err)
		}
	})
	assert.Zero(t, n, "interrupts")
}
