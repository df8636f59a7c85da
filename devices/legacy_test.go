package devices

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestEventKindString(t *testing.T) {
	seen := map[string]bool{}
	for k := EventKind(0); k <= BootMark+1; k++ {
		seen[k.String()] = true
	}
	assert.Len(t, seen, int(BootMark)+2)
	assert.Equal(t, "poweroff", Poweroff.String())
	assert.Equal(t, "event 200", EventKind(200).String())
}

// TestEvents lists which writes reach the machine, and as what.
func TestEvents(t *testing.T) {
	var l log
	i8042, pvpanic := NewI8042(l.sink), NewPVPanic(l.sink)
	exit, timer, power := NewDebugExit(l.sink), NewBootTimer(l.sink), NewPower(l.sink, nil)
	tests := []struct {
		name string
		h    Handler
		off  uint64
		data []byte
		want []Event
	}{
		{"i8042 reset", i8042, 4, []byte{0xfe}, []Event{{Reset, 0}}},
		{"i8042 reset in a wider write", i8042, 3, []byte{0, 0xfe}, []Event{{Reset, 0}}},
		{"i8042 self test", i8042, 4, []byte{0xaa}, nil},
		{"i8042 data port", i8042, 0, []byte{0xfe}, nil},
		{"panic", pvpanic, 0, []byte{1}, []Event{{Panic, 1}}},
		{"crash kernel", pvpanic, 0, []byte{2}, []Event{{CrashLoaded, 2}}},
		{"panic without crash kernel after all", pvpanic, 0, []byte{3}, []Event{{Panic, 3}}},
		{"unknown pvpanic event", pvpanic, 0, []byte{4}, nil},
		{"pvpanic elsewhere", pvpanic, 1, []byte{1}, nil},
		{"debug exit byte", exit, 0, []byte{7}, []Event{{DebugExit, 7}}},
		{"debug exit word", exit, 0, []byte{0x34, 0x12}, []Event{{DebugExit, 0x1234}}},
		{"debug exit long", exit, 0, []byte{0x78, 0x56, 0x34, 0x12}, []Event{{DebugExit, 0x12345678}}},
		{"debug exit second port", exit, 1, []byte{7}, nil},
		{"debug exit too wide", exit, 0, make([]byte, 8), nil},
		{"boot mark", timer, 0, []byte{123}, []Event{{BootMark, 123}}},
		{"boot mark in a wider write", timer, 0, []byte{123, 0, 0, 0}, []Event{{BootMark, 123}}},
		{"boot timer, another byte", timer, 0, []byte{124}, nil},
		{"boot timer, another place", timer, 8, []byte{123}, nil},
		{"S5", power, PowerSleepControl, []byte{5<<2 | 1<<5}, []Event{{Poweroff, 0}}},
		{"S5 without enable", power, PowerSleepControl, []byte{5 << 2}, nil},
		{"S3", power, PowerSleepControl, []byte{3<<2 | 1<<5}, nil},
		{"ACPI reset", power, PowerReset, []byte{1}, []Event{{Reset, 0}}},
		{"ACPI reset, another value", power, PowerReset, []byte{6}, nil},
		{"sleep and reset at once", power, 0, []byte{0x34, 0, 1, 0}, []Event{{Poweroff, 0}, {Reset, 0}}},
		{"event port", power, PowerEvent, []byte{1}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.h.Write(tt.off, tt.data)
			assert.Equal(t, tt.want, l.take())
			tt.h.Write(tt.off, nil)
			assert.Empty(t, l.take())
		})
	}
}

// TestEventsUnheard: without a sink nothing happens.
func TestEventsUnheard(t *testing.T) {
	out(NewI8042(nil), 4, 0xfe)
	out(NewPVPanic(nil), 0, 1)
	out(NewDebugExit(nil), 0, 1)
	out(NewBootTimer(nil), 0, 123)
	p := NewPower(nil, nil)
	out(p, PowerReset, 1)
	p.PressPowerButton()
}

func TestReads(t *testing.T) {
	tests := []struct {
		name string
		h    Handler
		off  uint64
		want []byte
	}{
		{"i8042 status", NewI8042(nil), 4, []byte{0}},
		{"i8042 data", NewI8042(nil), 0, []byte{0xff}},
		{"port B has no error", NewI8042(nil), 1, []byte{0x20}},
		{"i8042 beyond", NewI8042(nil), 4, []byte{0, 0xff}},
		{"pvpanic", NewPVPanic(nil), 0, []byte{3}},
		{"pvpanic wide", NewPVPanic(nil), 0, []byte{3, 0xff}},
		{"debug exit", NewDebugExit(nil), 0, []byte{0xff, 0xff, 0xff, 0xff}},
		{"boot timer", NewBootTimer(nil), 0, []byte{0xff, 0xff}},
		{"power", NewPower(nil, nil), 0, []byte{0, 0, 0, 0, 0, 0, 0, 0}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := make([]byte, len(tt.want))
			tt.h.Read(tt.off, p)
			assert.Equal(t, tt.want, p)
			tt.h.Read(tt.off, nil)
		})
	}
}

func TestPowerSleepRegisters(t *testing.T) {
	d := NewPower(nil, nil)
	out(d, PowerSleepControl, 0xff&^sleepEnable)
	assert.EqualValues(t, sleepTypeMask, in(d, PowerSleepControl), "only SLP_TYP stays")
	assert.Zero(t, in(d, PowerSleepStatus))
	out(d, PowerSleepControl, 1<<2|sleepEnable)
	assert.EqualValues(t, wakeStatus, in(d, PowerSleepStatus), "awake at once from a state that is not there")
	out(d, PowerSleepStatus, 0x7f)
	assert.EqualValues(t, wakeStatus, in(d, PowerSleepStatus))
	out(d, PowerSleepStatus, wakeStatus)
	assert.Zero(t, in(d, PowerSleepStatus))
}

func TestPowerButton(t *testing.T) {
	irq := newEdges()
	d := NewPower(nil, irq)
	assert.Zero(t, in(d, PowerEvent))
	d.PressPowerButton()
	d.PressPowerButton()
	assert.Equal(t, 2, irq.take())

	other := newEdges()
	c := NewPower(nil, other)
	c.SetState(d.State())
	assert.Equal(t, d.State(), c.State())
	assert.Equal(t, 1, other.take(), "an unread event is announced again")

	assert.EqualValues(t, PowerButtonEvent, in(d, PowerEvent))
	assert.Zero(t, in(d, PowerEvent), "reading clears it")
	c.SetState(PowerState{0xff, 0xff, 0xff})
	assert.Equal(t, PowerState{sleepTypeMask, wakeStatus, PowerButtonEvent}, c.State())
}

// FuzzPower writes and reads at random: only the two known writes end the machine.
func FuzzPower(f *testing.F) {
	f.Add([]byte{0x00, 0x34, 0x02, 0x01, 0x84, 0x00, 0x81, 0x00})
	f.Add([]byte{0x70, 0x34, 0x03, 0x01, 0xf0, 0x00})
	f.Fuzz(func(t *testing.T, ops []byte) {
		var l log
		d := NewPower(l.sink, newEdges())
		for ; len(ops) >= 2; ops = ops[2:] {
			off, n := uint64(ops[0]&15), 1<<(ops[0]>>4&3)
			p := make([]byte, n)
			if ops[0]&0x80 != 0 {
				if ops[1] == 0 {
					d.PressPowerButton()
				}
				d.Read(off, p)
				continue
			}
			fill(p, ops[1])
			d.Write(off, p)
			var want []Event
			if off == PowerSleepControl && ops[1]&0x3c == 0x34 {
				want = append(want, Event{Poweroff, 0})
			}
			if off <= PowerReset && off+uint64(n) > PowerReset && ops[1] == PowerResetValue {
				want = append(want, Event{Reset, 0})
			}
			if got := l.take(); len(got) != len(want) || len(got) > 0 && got[0] != want[0] {
				t.Fatalf("write %#x, %d bytes of %#x: %v, want %v", off, n, ops[1], got, want)
			}
		}
		st := d.State()
		d.SetState(st)
		if d.State() != st {
			t.Fatalf("%+v does not survive SetState", st)
		}
	})
}
