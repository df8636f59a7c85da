package devices

import (
	"sync"
	"time"
)

// RTCPorts is the number of ports that an [RTC] takes: index and data.
const RTCPorts = 2

// Registers of the clock (MC146818A) and the bytes of a PC's CMOS that have a meaning for a kernel.
const (
	rtcSeconds  = 0x00
	rtcMinutes  = 0x02
	rtcHours    = 0x04
	rtcWeekday  = 0x06 // 1 is Sunday
	rtcDay      = 0x07
	rtcMonth    = 0x08
	rtcYear     = 0x09
	rtcStatusA  = 0x0a
	rtcStatusB  = 0x0b
	rtcStatusC  = 0x0c
	rtcStatusD  = 0x0d
	cmosEquip   = 0x14
	cmosBaseLo  = 0x15 // base memory in KiB
	cmosExtLo   = 0x17 // memory above 1 MiB in KiB
	cmosSum     = 0x10 // the checksum covers 0x10 to 0x2d
	cmosSumHigh = 0x2e
	cmosExt2Lo  = 0x30 // the same as cmosExtLo
	rtcCentury  = 0x32 // the FADT's CENTURY points here
	cmosAbove16 = 0x34 // memory from 16 MiB to 4 GiB in 64 KiB
	cmosAbove4G = 0x5b // memory above 4 GiB in 64 KiB, three bytes
	cmosSize    = 0x80
	cmosNMIMask = 0x80 // index port: NMI disabled, which nothing here generates
)

const (
	statusAUIP     = 1 << 7
	statusADefault = 0x26 // 32768 Hz time base, 1024 Hz periodic rate
	statusB24Hour  = 1 << 1
	statusBBinary  = 1 << 2
	statusBSet     = 1 << 7
	statusDValid   = 1 << 7
	hoursPM        = 1 << 7

	// updateWindow is how long before a new second UIP is set, so that a reader who saw it clear has the time to read.
	updateWindow = 244 * time.Microsecond
)

// RTCConfig says what the clock and the CMOS tell the guest.
type RTCConfig struct {
	// Now is the wall clock; nil is time.Now. The guest sees UTC.
	Now func() time.Time
	// LowMemory and HighMemory are the bytes of RAM below and above 4 GiB.
	LowMemory, HighMemory uint64
}

// RTCState is the registers of an [RTC]. The time itself is the host's plus Offset.
type RTCState struct {
	Index  uint8           // the CMOS byte that the data port reaches
	CMOS   [cmosSize]uint8 // the time registers in it count only while status B has SET
	Offset int64           // the guest's clock minus the host's, in seconds
}

// RTC is the clock and the CMOS memory behind ports 0x70 and 0x71. It has no interrupt line: alarms and periodic flags
// are stored, and never come. Its methods may be called from any goroutine.
type RTC struct {
	now func() time.Time

	mu      sync.Mutex
	st      RTCState
	lastUIP time.Time // the clock when UIP was last shown, so that a clock that stands does not show it for ever
}

// NewRTC returns a clock that shows cfg.Now in BCD and 24 hours.
func NewRTC(cfg RTCConfig) *RTC {
	d := &RTC{now: cfg.Now}
	if d.now == nil {
		d.now = time.Now
	}
	c := &d.st.CMOS
	c[rtcStatusA] = statusADefault
	c[rtcStatusB] = statusB24Hour
	c[cmosEquip] = 1 << 1 // a numeric coprocessor, no diskette drive

	put := func(at int, n int, v uint64) {
		v = min(v, 1<<(8*n)-1)
		for i := range n {
			c[at+i] = uint8(v >> (8 * i))
		}
	}
	above := func(from uint64) uint64 { return max(cfg.LowMemory, from) - from }
	put(cmosBaseLo, 2, min(cfg.LowMemory>>10, 640))
	put(cmosExtLo, 2, above(1<<20)>>10)
	put(cmosExt2Lo, 2, above(1<<20)>>10)
	put(cmosAbove16, 2, above(16<<20)>>16)
	put(cmosAbove4G, 3, cfg.HighMemory>>16)
	sum := uint16(0)
	for _, v := range c[cmosSum:cmosSumHigh] {
		sum += uint16(v)
	}
	c[cmosSumHigh], c[cmosSumHigh+1] = uint8(sum>>8), uint8(sum)
	return d
}

// Read implements [Handler]. The index port can't be read back.
func (d *RTC) Read(off uint64, p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range p {
		if off+uint64(i) == 1 {
			p[i] = d.read(d.st.Index)
		} else {
			p[i] = 0xff
		}
	}
}

// Write implements [Handler]. Two bytes written to the index port are index and data.
func (d *RTC) Write(off uint64, p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, v := range p {
		switch off + uint64(i) {
		case 0:
			d.st.Index = v &^ cmosNMIMask
		case 1:
			d.write(d.st.Index, v)
		}
	}
}

func (d *RTC) read(index uint8) uint8 {
	switch {
	case index == rtcStatusA:
		if d.updating() {
			return d.st.CMOS[rtcStatusA] | statusAUIP
		}
	case index == rtcStatusC:
		return 0
	case index == rtcStatusD:
		return statusDValid
	case isTime(index) && !d.stopped():
		d.latch()
	}
	return d.st.CMOS[index%cmosSize]
}

func (d *RTC) write(index, v uint8) {
	c := &d.st.CMOS
	switch {
	case index == rtcStatusA:
		c[rtcStatusA] = v &^ statusAUIP
	case index == rtcStatusB:
		wasStopped := d.stopped()
		if !wasStopped {
			d.latch()
		}
		c[rtcStatusB] = v
		if wasStopped && !d.stopped() {
			d.adjust()
		}
	case index == rtcStatusC || index == rtcStatusD:
	case isTime(index):
		if !d.stopped() {
			d.latch()
		}
		c[index] = v
		if !d.stopped() {
			d.adjust()
		}
	default:
		c[index%cmosSize] = v
	}
}

// isTime reports whether the CMOS byte is one that the clock counts.
func isTime(index uint8) bool {
	switch index {
	case rtcSeconds, rtcMinutes, rtcHours, rtcWeekday, rtcDay, rtcMonth, rtcYear, rtcCentury:
		return true
	}
	return false
}

// stopped reports whether the guest holds the clock to set it.
func (d *RTC) stopped() bool { return d.st.CMOS[rtcStatusB]&statusBSet != 0 }

// updating reports whether the clock is about to turn to the next second.
func (d *RTC) updating() bool {
	if d.stopped() {
		return false
	}
	now := d.now()
	if now.Nanosecond() < int(time.Second-updateWindow) || now.Equal(d.lastUIP) {
		return false
	}
	d.lastUIP = now
	return true
}

// latch writes the guest's time into the time registers, in the format that status B asks for.
func (d *RTC) latch() {
	t := time.Unix(d.now().Unix()+d.st.Offset, 0).UTC()
	c := &d.st.CMOS
	hour := t.Hour()
	pm := uint8(0)
	if c[rtcStatusB]&statusB24Hour == 0 {
		if hour >= 12 {
			pm = hoursPM
		}
		hour = (hour+11)%12 + 1
	}
	c[rtcSeconds] = d.encode(t.Second())
	c[rtcMinutes] = d.encode(t.Minute())
	c[rtcHours] = d.encode(hour) | pm
	c[rtcWeekday] = d.encode(int(t.Weekday()) + 1)
	c[rtcDay] = d.encode(t.Day())
	c[rtcMonth] = d.encode(int(t.Month()))
	year := max(t.Year(), 0)
	c[rtcYear] = d.encode(year % 100)
	c[rtcCentury] = d.encode(year / 100 % 100)
}

// adjust makes the time registers the guest's time: it moves the offset. The weekday follows from the date.
func (d *RTC) adjust() {
	c := &d.st.CMOS
	hour := d.decode(c[rtcHours])
	if c[rtcStatusB]&statusB24Hour == 0 {
		hour = d.decode(c[rtcHours]&^hoursPM) % 12
		if c[rtcHours]&hoursPM != 0 {
			hour += 12
		}
	}
	t := time.Date(100*d.decode(c[rtcCentury])+d.decode(c[rtcYear]), time.Month(d.decode(c[rtcMonth])), d.decode(c[rtcDay]),
		hour, d.decode(c[rtcMinutes]), d.decode(c[rtcSeconds]), 0, time.UTC)
	d.st.Offset = t.Unix() - d.now().Unix()
}

// encode returns v, 0 to 99, in BCD or binary, as status B asks for.
func (d *RTC) encode(v int) uint8 {
	if d.st.CMOS[rtcStatusB]&statusBBinary != 0 {
		return uint8(v)
	}
	return uint8(v/10<<4 | v%10)
}

// decode is the reverse of encode. What is no BCD digit counts for what it is, as it does on the chip.
func (d *RTC) decode(v uint8) int {
	if d.st.CMOS[rtcStatusB]&statusBBinary != 0 {
		return int(v)
	}
	return int(v>>4)*10 + int(v&0xf)
}

// State returns the registers.
func (d *RTC) State() RTCState {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.st
}

// SetState replaces the registers. The clock goes on from the host's time: what has passed since State was taken has
// passed for the guest too.
func (d *RTC) SetState(st RTCState) {
	st.Index %= cmosSize
	st.CMOS[rtcStatusA] &^= statusAUIP
	d.mu.Lock()
	defer d.mu.Unlock()
	d.st = st
}
