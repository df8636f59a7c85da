package devices

// The ports, relative to the base. DLL and DLM are there while LCR has DLAB.
const (
	regData = 0 // RBR read, THR written, DLL
	regIER  = 1 // DLM
	regIIR  = 2 // read
	regFCR  = 2 // written
	regLCR  = 3
	regMCR  = 4
	regLSR  = 5
	regMSR  = 6
	regSCR  = 7
)

const (
	ierRDA  = 1 << 0 // received data available, and character timeout
	ierTHRE = 1 << 1 // transmitter holding register empty
	ierRLS  = 1 << 2 // receiver line status
	ierMSI  = 1 << 3 // modem status
	ierMask = 0x0f

	// Interrupt identification, highest priority first.
	iirRLS     = 0x06
	iirRDA     = 0x04
	iirTimeout = 0x0c
	iirTHRE    = 0x02
	iirMSI     = 0x00
	iirNone    = 0x01
	iirFIFO    = 0xc0 // FIFOs enabled

	fcrEnable  = 1 << 0
	fcrClearRX = 1 << 1
	fcrKeep    = 0xc9 // what is remembered: enable, DMA mode, trigger level

	lcrDLAB = 1 << 7

	mcrDTR  = 1 << 0
	mcrRTS  = 1 << 1
	mcrOUT1 = 1 << 2
	mcrOUT2 = 1 << 3 // on a PC: connects the interrupt to the bus
	mcrLoop = 1 << 4
	mcrMask = 0x1f

	lsrDR     = 1 << 0
	lsrOE     = 1 << 1
	lsrErrors = lsrOE // of the four only overrun can happen
	lsrTHRE   = 1 << 5
	lsrTEMT   = 1 << 6
	lsrSlow   = 1 << 8 // not a register bit: see Serial.lsr

	msrTERI   = 1 << 2 // trailing edge of RI; the other deltas are changes either way
	msrDeltas = 0x0f
	msrCTS    = 1 << 4
	msrDSR    = 1 << 5
	msrRI     = 1 << 6
	msrDCD    = 1 << 7

	// externalLines is what the other end of the cable drives, always.
	externalLines = msrCTS | msrDSR | msrDCD
)

// rxTriggers is the FIFO level of the received-data interrupt by FCR bits 6 and 7.
var rxTriggers = [4]uint8{1, 4, 8, 14}

// Read implements [Handler]. A driver that sends by polling reads LSR before every byte, so that read takes no lock.
func (s *Serial) Read(off uint64, p []byte) {
	if off == regLSR && len(p) == 1 {
		if v := s.lsr.Load(); v&(lsrSlow|lsrErrors) == 0 {
			p[0] = uint8(v)
			return
		}
	}
	for i := range p {
		if off >= SerialPorts || off+uint64(i) >= SerialPorts {
			p[i] = 0xff
			continue
		}
		p[i] = s.read(uint8(off) + uint8(i))
	}
}

// Write implements [Handler].
func (s *Serial) Write(off uint64, p []byte) {
	for i, v := range p {
		if off >= SerialPorts || off+uint64(i) >= SerialPorts {
			return
		}
		s.write(uint8(off)+uint8(i), v)
	}
}

func (s *Serial) read(reg uint8) (v uint8) {
	s.mu.Lock()
	st := &s.st
	if reg != regLSR && reg != regData {
		s.rx.polls = 0
	}
	switch reg {
	case regData:
		if st.LCR&lcrDLAB != 0 {
			v = st.DLL
			break
		}
		if st.RXLen == 0 {
			break
		}
		v = st.RX[0]
		copy(st.RX[:], st.RX[1:])
		st.RXLen--
		st.RXLoop >>= 1
		if st.RXLen == 0 {
			// Refilled before anyone looks: for a driver that reads until LSR says there is nothing, one interrupt
			// covers it all.
			s.receive()
		}
	case regIER:
		v = st.IER
		if st.LCR&lcrDLAB != 0 {
			v = st.DLM
		}
	case regIIR:
		v = s.cause()
		if v == iirTHRE {
			st.THREPending = false
		}
		if st.FCR&fcrEnable != 0 {
			v |= iirFIFO
		}
	case regLCR:
		v = st.LCR
	case regMCR:
		v = st.MCR
	case regLSR:
		if s.rx.waiting() {
			s.rx.polls++
			s.receive()
		}
		v = s.status()
		st.LSR = 0
	case regMSR:
		v = st.MSR
		st.MSR &^= msrDeltas
	case regSCR:
		v = st.SCR
	}
	rose := s.settle()
	s.mu.Unlock()
	if rose {
		s.pulse()
	}
	return v
}

// Send is Write of v to the data register, except that it does not wait: it is for a write that KVM has collected, whose
// vCPU has gone on. The caller calls WaitRoom when it can.
func (s *Serial) Send(v byte) { s.put(regData, v, false) }

// WaitRoom waits as Write does after a byte. Where there is room it takes no lock.
func (s *Serial) WaitRoom() {
	if s.Crowded() {
		s.mu.Lock()
		s.tx.wait(false)
	}
}

// Crowded reports whether a Write would wait, or would if the port were not held.
func (s *Serial) Crowded() bool { return s.tx.crowded.Load() }

func (s *Serial) write(reg, v uint8) { s.put(reg, v, true) }

// put is a write to a register. If wait is set, it does not return before the transmitter has room again.
func (s *Serial) put(reg, v uint8, wait bool) {
	s.mu.Lock()
	st := &s.st
	s.rx.polls = 0
	if reg == regData && st.LCR&lcrDLAB == 0 && st.MCR&mcrLoop == 0 {
		s.transmit(v, wait)
		return
	}
	switch reg {
	case regData:
		if st.LCR&lcrDLAB != 0 {
			st.DLL = v
		} else {
			s.loopBack(v)
			st.THREPending = true
		}
	case regIER:
		if st.LCR&lcrDLAB != 0 {
			st.DLM = v
			break
		}
		// THR is empty whenever anyone looks, so enabling the interrupt raises it. Linux tests for that.
		if v&^st.IER&ierTHRE != 0 {
			st.THREPending = true
		}
		st.IER = v & ierMask
	case regFCR:
		s.setFCR(v)
	case regLCR:
		st.LCR = v
	case regMCR:
		st.MCR = v & mcrMask
		if v&(mcrRTS|mcrLoop) == mcrRTS {
			st.RTSRaised = true
		}
		old, now := st.MSR, s.lines()
		st.MSR = old&msrDeltas | now | (old^now)>>4&^msrTERI&msrDeltas | (old&^now&msrRI)>>4
	case regSCR:
		st.SCR = v
	}
	s.receiveAndPulse()
}

// transmit sends one byte down the wire. It is called with the lock and returns without it.
func (s *Serial) transmit(v uint8, wait bool) {
	if s.onByte != nil {
		s.onByte(v)
	}
	s.tx.push(v)
	// The ring has taken the byte, so THR is empty again: the THRE interrupt comes back, if the last one was read.
	s.st.THREPending = true
	rose := s.st.IER&ierTHRE != 0 && s.settle()
	if wait && s.tx.full() {
		s.tx.wait(rose)
		return
	}
	s.mu.Unlock()
	if rose {
		s.pulse()
	}
}

// loopBack is transmit in loopback mode: the byte arrives in the receiver, and pushes out another if there is no room.
func (s *Serial) loopBack(v uint8) {
	st := &s.st
	size := s.rxSize()
	if st.RXLen < size {
		st.RX[st.RXLen] = v
		st.RXLoop |= 1 << st.RXLen
		st.RXLen++
		return
	}
	st.LSR |= lsrOE
	if size == 1 {
		s.rx.putBack()
		st.RX[0], st.RXLoop = v, 1
	}
}

// setFCR takes a write to the FIFO control register. The transmitter FIFO is always empty, so clearing it is nothing.
func (s *Serial) setFCR(v uint8) {
	if (v^s.st.FCR)&fcrEnable != 0 || v&(fcrEnable|fcrClearRX) == fcrEnable|fcrClearRX {
		s.rx.putBack()
		s.st.RXLen, s.st.RXLoop = 0, 0
	}
	if v&fcrEnable == 0 {
		v = 0
	}
	s.st.FCR = v & fcrKeep
}

// rxSize returns how many bytes the receiver holds.
func (s *Serial) rxSize() uint8 {
	if s.st.FCR&fcrEnable == 0 {
		return 1
	}
	return uint8(len(s.st.RX))
}

// lines returns the modem inputs, in the upper half of MSR.
func (s *Serial) lines() uint8 {
	mcr := s.st.MCR
	if mcr&mcrLoop == 0 {
		return externalLines
	}
	var v uint8
	if mcr&mcrRTS != 0 {
		v |= msrCTS
	}
	if mcr&mcrDTR != 0 {
		v |= msrDSR
	}
	if mcr&mcrOUT1 != 0 {
		v |= msrRI
	}
	if mcr&mcrOUT2 != 0 {
		v |= msrDCD
	}
	return v
}

// status returns LSR.
func (s *Serial) status() uint8 {
	v := lsrTHRE | lsrTEMT | s.st.LSR
	if s.st.RXLen > 0 {
		v |= lsrDR
	}
	return v
}

// cause returns the interrupt that IIR names now, without the FIFO bits.
func (s *Serial) cause() uint8 {
	st := &s.st
	switch {
	case st.IER&ierRLS != 0 && st.LSR&lsrErrors != 0:
		return iirRLS
	case st.IER&ierRDA != 0 && st.RXLen > 0:
		if st.FCR&fcrEnable != 0 && st.RXLen < rxTriggers[st.FCR>>6] {
			return iirTimeout
		}
		return iirRDA
	case st.IER&ierTHRE != 0 && st.THREPending:
		return iirTHRE
	case st.IER&ierMSI != 0 && st.MSR&msrDeltas != 0:
		return iirMSI
	}
	return iirNone
}

// settle brings lsr and line up to date after a change of the registers, and reports whether the interrupt line rose. A
// driver that handles causes until IIR names none needs no more edges than these: when it reads "none" the line is low,
// and whatever comes then raises it. In loopback mode OUT2 is disconnected, and with it the interrupt.
func (s *Serial) settle() (rose bool) {
	v := uint32(s.status())
	if s.rx.waiting() {
		v |= lsrSlow
	}
	if v != s.lsr.Load() {
		s.lsr.Store(v)
	}
	was := s.line
	s.line = s.st.MCR&(mcrOUT2|mcrLoop) == mcrOUT2 && s.cause() != iirNone
	return s.line && !was
}

// receiveAndPulse lets input in after a change that may have made way for it, and raises the interrupt if there is
// cause. It is called with the lock and returns without it.
func (s *Serial) receiveAndPulse() {
	s.receive()
	rose := s.settle()
	s.mu.Unlock()
	if rose {
		s.pulse()
	}
}
