package kvm

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestReasonString(t *testing.T) {
	assert.Equal(t, "KVM_EXIT_IO", ReasonIO.String())
	assert.Equal(t, "KVM_EXIT_INTR", ReasonInterrupted.String())
	assert.Equal(t, "KVM_EXIT_MEMORY_FAULT", ReasonMemoryFault.String())
	assert.Equal(t, "again", ReasonAgain.String())
	assert.Equal(t, "KVM exit 4711", Reason(4711).String())
	assert.Equal(t, "KVM_CAP_IRQCHIP", CapIRQChip.String())
}

// fakeVCPU is a vCPU without a kernel behind it, whose mapping the test fills.
func fakeVCPU(last Reason) *VCPU {
	mem := make([]byte, 3*pageSize)
	return &VCPU{fd: -1, last: last, run: newRunView(mem)}
}

func TestIOStaysInTheMapping(t *testing.T) {
	tests := []struct {
		name   string
		size   uint8
		count  uint32
		offset uint64
		want   int
	}{
		{"a byte", 1, 1, pageSize, 1},
		{"a string", 4, 1024, pageSize, 4096},
		{"up to the end", 1, 1, 3*pageSize - 1, 1},
		{"nothing at the end", 1, 0, 3 * pageSize, 0},
		{"size 0", 0, 1, pageSize, 0},
		{"count 0", 1, 0, pageSize, 0},
		{"one past the end", 2, 1, 3*pageSize - 1, 0},
		{"starts past the end", 1, 1, 3*pageSize + 1, 0},
		{"offset wraps", 1, 1, ^uint64(0), 0},
		{"sum wraps", 255, ^uint32(0), ^uint64(0) - 100, 0},
		{"count is absurd", 255, ^uint32(0), 0, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := fakeVCPU(ReasonIO)
			c.run.mem[32], c.run.mem[33] = exitIOOut, tt.size
			binary.LittleEndian.PutUint16(c.run.mem[34:], 0x3f8)
			binary.LittleEndian.PutUint32(c.run.mem[36:], tt.count)
			binary.LittleEndian.PutUint64(c.run.mem[40:], tt.offset)
			port, out, size, count, data := c.IO()
			assert.EqualValues(t, 0x3f8, port)
			assert.True(t, out)
			assert.Len(t, data, tt.want)
			assert.Equal(t, tt.want, size*count)
			assert.Equal(t, len(data), cap(data), "an append would reach the rest of the mapping")
		})
	}
}

func TestMMIOStaysInTheMapping(t *testing.T) {
	for length, want := range map[uint32]int{0: 0, 1: 1, 3: 3, 8: 8, 9: 0, ^uint32(0): 0} {
		c := fakeVCPU(ReasonMMIO)
		binary.LittleEndian.PutUint64(c.run.mem[32:], 0xfee00000)
		binary.LittleEndian.PutUint32(c.run.mem[48:], length)
		c.run.mem[52] = 1
		addr, write, data := c.MMIO()
		assert.EqualValues(t, 0xfee00000, addr)
		assert.True(t, write)
		assert.Len(t, data, want, "length %d", length)
		assert.Equal(t, len(data), cap(data))
	}
}

func TestDecodersAnswerForTheLastReasonOnly(t *testing.T) {
	c := fakeVCPU(ReasonAgain)
	for i := 32; i < 288; i++ {
		c.run.mem[i] = 1
	}
	port, out, size, count, data := c.IO()
	assert.Zero(t, port)
	assert.False(t, out)
	assert.Zero(t, size+count+len(data))
	addr, write, data := c.MMIO()
	assert.Zero(t, addr)
	assert.False(t, write)
	assert.Nil(t, data)
	assert.Zero(t, c.InternalError())
	assert.Zero(t, c.FailEntry())
	assert.Zero(t, c.SystemEvent())
}

func TestInternalError(t *testing.T) {
	c := fakeVCPU(ReasonInternalError)
	page := c.run.mem[32:]
	binary.LittleEndian.PutUint32(page[0:], InternalEmulation)
	binary.LittleEndian.PutUint32(page[4:], 3)
	page[8] = emulationHasInstruction
	copy(page[16:], []byte{4, 0x48, 0x0f, 0xc7, 0x0e, 0xcc})
	e := c.InternalError()
	assert.Equal(t, []byte{0x48, 0x0f, 0xc7, 0x0e}, e.Instruction())
	assert.EqualError(t, e, "kvm: KVM could not emulate an instruction: 48 0f c7 0e")

	page[16] = 255 // more than an instruction can have
	assert.Len(t, c.InternalError().Instruction(), maxInstruction)

	page[8] = 0 // no instruction
	e = c.InternalError()
	assert.Nil(t, e.Instruction())
	assert.EqualError(t, e, "kvm: KVM could not emulate an instruction 0x0 0xcc0ec70f48ff 0x0")

	binary.LittleEndian.PutUint32(page[0:], InternalDeliveryEvent)
	binary.LittleEndian.PutUint32(page[4:], ^uint32(0)) // more than there is
	e = c.InternalError()
	assert.Equal(t, 16, e.NData)
	assert.ErrorContains(t, e, "kvm: an exit during event delivery 0x0 ")

	binary.LittleEndian.PutUint32(page[0:], 77)
	binary.LittleEndian.PutUint32(page[4:], 0)
	assert.EqualError(t, c.InternalError(), "kvm: internal error 77")
}

func TestSystemEventAndFailEntry(t *testing.T) {
	c := fakeVCPU(ReasonSystemEvent)
	page := c.run.mem[32:]
	binary.LittleEndian.PutUint32(page[0:], SystemEventCrash)
	binary.LittleEndian.PutUint32(page[4:], ^uint32(0))
	binary.LittleEndian.PutUint64(page[8:], 7)
	e := c.SystemEvent()
	assert.EqualValues(t, SystemEventCrash, e.Type)
	assert.Equal(t, 16, e.NData)
	assert.EqualValues(t, 7, e.Data[0])

	c.last = ReasonFailEntry
	binary.LittleEndian.PutUint64(page[0:], 0x80000021)
	binary.LittleEndian.PutUint32(page[8:], 1)
	assert.Equal(t, FailEntry{Reason: 0x80000021, CPU: 1}, c.FailEntry())
}

func TestImmediateExitIsOneByte(t *testing.T) {
	c := fakeVCPU(ReasonUnknown)
	c.mapped = true
	c.run.mem[0] = 1 // request_interrupt_window, in the same word
	c.SetImmediateExit(true)
	assert.Equal(t, []byte{1, 1, 0, 0, 0, 0, 0, 0}, c.run.mem[:8])
	c.SetImmediateExit(false)
	assert.Equal(t, []byte{1, 0, 0, 0, 0, 0, 0, 0}, c.run.mem[:8])
}

func TestRunErrorNamesTheAddress(t *testing.T) {
	c := fakeVCPU(ReasonUnknown)
	page := c.run.mem[32:]
	binary.LittleEndian.PutUint64(page[0:], 8)
	binary.LittleEndian.PutUint64(page[8:], 0x100000)
	binary.LittleEndian.PutUint64(page[16:], pageSize)
	c.run.page.ExitReason = uint32(ReasonMemoryFault)
	for _, errno := range []unix.Errno{unix.EFAULT, unix.EHWPOISON} {
		err := c.runError(errno)
		require.ErrorIs(t, err, errno)
		var fault *MemoryFaultError
		require.ErrorAs(t, err, &fault)
		assert.Equal(t, MemoryFaultError{GPA: 0x100000, Size: pageSize, Flags: 8, Err: errno}, *fault)
	}
	assert.EqualError(t, c.runError(unix.ENOEXEC), "kvm: KVM_RUN on vCPU 0: exec format error")
	c.run.page.ExitReason = uint32(ReasonIO)
	assert.EqualError(t, c.runError(unix.EFAULT), "kvm: KVM_RUN on vCPU 0: bad address")
}
