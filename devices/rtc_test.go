package devices

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// clock is a settable wall clock.
type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func cmos(d *RTC, index uint8) uint8 {
	out(d, 0, index)
	return in(d, 1)
}

func setCMOS(d *RTC, index, v uint8) { d.Write(0, []byte{index, v}) }

// readTime reads the clock as Linux does, in whatever format status B says.
func readTime(d *RTC) time.Time {
	b := cmos(d, rtcStatusB)
	num := func(v uint8) int {
		if b&statusBBinary != 0 {
			return int(v)
		}
		return int(v&15) + 10*int(v>>4)
	}
	h := cmos(d, rtcHours)
	hour := num(h &^ hoursPM)
	if b&statusB24Hour == 0 {
		hour %= 12
		if h&hoursPM != 0 {
			hour += 12
		}
	}
	return time.Date(num(cmos(d, rtcCentury))*100+num(cmos(d, rtcYear)), time.Month(num(cmos(d, rtcMonth))), num(cmos(d, rtcDay)),
		hour, num(cmos(d, rtcMinutes)), num(cmos(d, rtcSeconds)), 0, time.UTC)
}

func TestRTCFormats(t *testing.T) {
	at := func(s string) time.Time {
		v, err := time.Parse(time.DateTime, s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	tests := []struct {
		name string
		b    uint8
		now  time.Time
		want [8]uint8 // seconds, minutes, hours, weekday, day, month, year, century
	}{
		{"BCD 24", statusB24Hour, at("2026-11-22 13:59:48"), [8]uint8{0x48, 0x59, 0x13, 1, 0x22, 0x11, 0x26, 0x20}},
		{"BCD 12 afternoon", 0, at("2026-11-22 13:59:48"), [8]uint8{0x48, 0x59, 0x81, 1, 0x22, 0x11, 0x26, 0x20}},
		{"BCD 12 midnight", 0, at("2024-02-29 00:00:00"), [8]uint8{0, 0, 0x12, 5, 0x29, 0x02, 0x24, 0x20}},
		{"BCD 12 noon", 0, at("2024-02-29 12:00:00"), [8]uint8{0, 0, 0x92, 5, 0x29, 0x02, 0x24, 0x20}},
		{"binary 24", statusB24Hour | statusBBinary, at("1999-12-31 23:59:59"), [8]uint8{59, 59, 23, 6, 31, 12, 99, 19}},
		{"binary 12", statusBBinary, at("2000-01-01 23:01:02"), [8]uint8{2, 1, 0x80 | 11, 7, 1, 1, 0, 20}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			// The host's time zone is not the guest's.
			local := time.Local
			time.Local = time.FixedZone("x", 3600*5)
			defer func() { time.Local = local }()
			d := NewRTC(RTCConfig{Now: func() time.Time { return tt.now.Local() }})
			setCMOS(d, rtcStatusB, tt.b)
			var got [8]uint8
			for i, reg := range []uint8{rtcSeconds, rtcMinutes, rtcHours, rtcWeekday, rtcDay, rtcMonth, rtcYear, rtcCentury} {
				got[i] = cmos(d, reg)
			}
			assert.Equal(t, tt.want, got)
			assert.Equal(t, tt.now, readTime(d))
		})
	}
}

func TestRTCStatus(t *testing.T) {
	c := &clock{time.Unix(1e9, 0)}
	d := NewRTC(RTCConfig{Now: c.now})
	assert.EqualValues(t, 0x26, cmos(d, rtcStatusA))
	assert.EqualValues(t, statusB24Hour, cmos(d, rtcStatusB))
	assert.EqualValues(t, 0, cmos(d, rtcStatusC))
	assert.EqualValues(t, statusDValid, cmos(d, rtcStatusD))
	assert.EqualValues(t, statusDValid, cmos(d, rtcStatusD|cmosNMIMask), "the NMI bit is not part of the index")
	setCMOS(d, rtcStatusA, 0xff)
	setCMOS(d, rtcStatusC, 0xff)
	setCMOS(d, rtcStatusD, 0)
	assert.EqualValues(t, 0x7f, cmos(d, rtcStatusA))
	assert.EqualValues(t, 0, cmos(d, rtcStatusC))
	assert.EqualValues(t, statusDValid, cmos(d, rtcStatusD))
	assert.EqualValues(t, 0xff, in(d, 0), "the index can't be read")
}

func TestRTCUpdateInProgress(t *testing.T) {
	c := &clock{time.Unix(1e9, 0)}
	d := NewRTC(RTCConfig{Now: c.now})
	uip := func() bool { return cmos(d, rtcStatusA)&statusAUIP != 0 }
	assert.False(t, uip())
	c.t = time.Unix(1e9, 1e9-1000)
	assert.True(t, uip())
	assert.False(t, uip(), "never twice at the same instant: a clock that stands must not stop the guest")
	c.t = c.t.Add(500 * time.Nanosecond)
	assert.True(t, uip())
	c.t = time.Unix(1e9+1, 0)
	assert.False(t, uip())
	c.t = time.Unix(1e9+1, 1e9-1000)
	setCMOS(d, rtcStatusB, statusBSet|statusB24Hour)
	assert.False(t, uip(), "a stopped clock does not update")
}

func TestRTCSetTime(t *testing.T) {
	c := &clock{time.Date(2026, 11, 22, 13, 0, 0, 0, time.UTC)}
	d := NewRTC(RTCConfig{Now: c.now})
	want := time.Date(2031, 2, 28, 23, 59, 58, 0, time.UTC)

	setCMOS(d, rtcStatusB, statusBSet|statusB24Hour)
	frozen := cmos(d, rtcSeconds)
	c.t = c.t.Add(5 * time.Second)
	assert.Equal(t, frozen, cmos(d, rtcSeconds), "SET stops the clock")
	for reg, v := range map[uint8]uint8{
		rtcSeconds: 0x58, rtcMinutes: 0x59, rtcHours: 0x23, rtcDay: 0x28, rtcMonth: 0x02, rtcYear: 0x31, rtcCentury: 0x20,
	} {
		setCMOS(d, reg, v)
	}
	setCMOS(d, rtcStatusB, statusB24Hour)
	assert.Equal(t, want, readTime(d))
	c.t = c.t.Add(3 * time.Second)
	assert.Equal(t, want.Add(3*time.Second), readTime(d), "and over the end of a month")

	st := d.State()
	other := NewRTC(RTCConfig{Now: c.now})
	other.SetState(st)
	c.t = c.t.Add(time.Hour)
	assert.Equal(t, want.Add(time.Hour+3*time.Second), readTime(other))
	assert.Equal(t, st.Offset, other.State().Offset)
}

func TestRTCSetOneField(t *testing.T) {
	c := &clock{time.Date(2026, 11, 22, 13, 0, 7, 0, time.UTC)}
	d := NewRTC(RTCConfig{Now: c.now})
	setCMOS(d, rtcMinutes, 0x30)
	assert.Equal(t, time.Date(2026, 11, 22, 13, 30, 7, 0, time.UTC), readTime(d))
	setCMOS(d, rtcSeconds|cmosNMIMask, 0)
	assert.Equal(t, time.Date(2026, 11, 22, 13, 30, 0, 0, time.UTC), readTime(d))
}

func TestRTCSetIn12Hours(t *testing.T) {
	d := NewRTC(RTCConfig{Now: (&clock{time.Date(2026, 11, 22, 13, 0, 0, 0, time.UTC)}).now})
	setCMOS(d, rtcStatusB, statusBSet|statusBBinary)
	for _, tt := range []struct {
		reg  uint8
		hour int
	}{{12, 0}, {1, 1}, {11, 11}, {12 | hoursPM, 12}, {11 | hoursPM, 23}} {
		setCMOS(d, rtcStatusB, statusBSet|statusBBinary)
		setCMOS(d, rtcHours, tt.reg)
		setCMOS(d, rtcStatusB, statusBBinary)
		assert.Equal(t, tt.reg, cmos(d, rtcHours))
		setCMOS(d, rtcStatusB, statusBBinary|statusB24Hour)
		assert.EqualValues(t, tt.hour, cmos(d, rtcHours))
	}
}

func TestRTCMemory(t *testing.T) {
	const gib = 1 << 30
	word := func(d *RTC, at uint8) int { return int(cmos(d, at)) | int(cmos(d, at+1))<<8 }
	tests := []struct {
		name                         string
		low, high                    uint64
		base, ext, above16M, above4G int
	}{
		{"none", 0, 0, 0, 0, 0, 0},
		{"512 KiB", 512 << 10, 0, 512, 0, 0, 0},
		{"8 MiB", 8 << 20, 0, 640, 7 << 10, 0, 0},
		{"128 MiB", 128 << 20, 0, 640, 0xffff, 112 << 4, 0},
		{"3 GiB", 3 * gib, 0, 640, 0xffff, (3*gib - 16<<20) >> 16, 0},
		{"5 GiB", 3 * gib, 2 * gib, 640, 0xffff, (3*gib - 16<<20) >> 16, 2 * gib >> 16},
		{"too much to say", 3 * gib, 1 << 62, 640, 0xffff, (3*gib - 16<<20) >> 16, 0xffffff},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := NewRTC(RTCConfig{LowMemory: tt.low, HighMemory: tt.high})
			assert.Equal(t, tt.base, word(d, 0x15))
			assert.Equal(t, tt.ext, word(d, 0x17))
			assert.Equal(t, tt.ext, word(d, 0x30))
			assert.Equal(t, tt.above16M, word(d, 0x34))
			assert.Equal(t, tt.above4G, word(d, 0x5b)|int(cmos(d, 0x5d))<<16)
			sum := 0
			for i := uint8(0x10); i <= 0x2d; i++ {
				sum += int(cmos(d, i))
			}
			assert.Equal(t, sum&0xffff, int(cmos(d, 0x2e))<<8|int(cmos(d, 0x2f)))
		})
	}
}

func TestRTCRemembers(t *testing.T) {
	d := NewRTC(RTCConfig{})
	for _, index := range []uint8{0x01, 0x03, 0x05, 0x0e, 0x0f, 0x20, 0x40, 0x7f} {
		setCMOS(d, index, 0xa5)
		assert.EqualValues(t, 0xa5, cmos(d, index), "CMOS byte %#x", index)
	}
	assert.WithinDuration(t, time.Now(), readTime(d), 5*time.Second)
	p := make([]byte, 4)
	out(d, 0, 0x7f)
	d.Read(0, p)
	assert.Equal(t, []byte{0xff, 0xa5, 0xff, 0xff}, p)
	d.Write(7, []byte{1, 2, 3})
}

// FuzzRTC writes and reads at random. A time that the guest sets properly comes back afterwards, whatever it did before.
func FuzzRTC(f *testing.F) {
	f.Add(int64(1e9), []byte{0x0b, 0x80, 0x00, 0xff, 0x08, 0x00, 0x0b, 0x02, 0x8a, 0x00})
	f.Add(int64(-1<<62), []byte{0x0b, 0x06, 0x09, 0xff, 0x32, 0xff, 0x87, 0x00})
	f.Fuzz(func(t *testing.T, unix int64, ops []byte) {
		c := &clock{time.Unix(unix%(1<<40), 999_999_000)}
		d := NewRTC(RTCConfig{Now: c.now, LowMemory: 1 << 30})
		for ; len(ops) >= 2; ops = ops[2:] {
			if ops[0]&0x80 != 0 {
				out(d, 0, ops[0])
				p := make([]byte, 1<<(ops[1]&3))
				d.Read(uint64(ops[1]>>4), p)
			} else {
				setCMOS(d, ops[0], ops[1])
			}
			c.t = c.t.Add(time.Duration(ops[1]) * time.Millisecond)
		}
		st := d.State()
		d.SetState(st)
		if d.State() != st {
			t.Fatalf("%+v does not survive SetState", st)
		}

		b := cmos(d, rtcStatusB) &^ statusBSet
		setCMOS(d, rtcStatusB, b|statusBSet)
		num := func(v int) uint8 {
			if b&statusBBinary != 0 {
				return uint8(v)
			}
			return uint8(v/10<<4 | v%10)
		}
		hour := num(9)
		if b&statusB24Hour == 0 {
			hour |= hoursPM
		} else {
			hour = num(21)
		}
		setCMOS(d, rtcHours, hour)
		for reg, v := range map[uint8]int{
			rtcSeconds: 1, rtcMinutes: 2, rtcDay: 24, rtcMonth: 12, rtcYear: 37, rtcCentury: 20,
		} {
			setCMOS(d, reg, num(v))
		}
		setCMOS(d, rtcStatusB, b)
		if got, want := readTime(d), time.Date(2037, 12, 24, 21, 2, 1, 0, time.UTC); !got.Equal(want) {
			t.Fatalf("set %v, read %v (status B %#x)", want, got, b)
		}
	})
}
