package fs

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// phase is where a session stands.
type phase int

const (
	closed   phase = iota // there is none
	starting              // INIT is being answered
	opened
	ending // DESTROY waits for the requests that are in flight
)

// session is the guest's FUSE session. Its methods may be called from any
// goroutine, but end, which nobody may call while another does, nor while INIT is
// being answered.
type session struct {
	fsys    FileSystem
	options *fuse.MountOptions

	mu     sync.Mutex
	phase  phase
	busy   int           // requests that have entered
	idle   chan struct{} // if not nil, closed when busy comes to 0
	server *fuse.ProtocolServer
	flags  uint32        // that INIT has agreed on, those of 32 bits
	over   chan struct{} // closed when the session is to end
	told   bool          // over is closed
	halted bool          // the device is being reset
}

// start is for INIT: it makes a server, unless there is a session.
func (s *session) start() *fuse.ProtocolServer {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase != closed || s.halted {
		return nil
	}
	s.phase, s.over, s.told = starting, make(chan struct{}), false
	s.server = fuse.NewProtocolServer(&patient{s.fsys, s.over}, s.options)
	return s.server
}

// started says what became of INIT.
func (s *session) started(ok bool, flags uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase = closed; ok {
		s.phase, s.flags = opened, flags
	}
}

// enter gives a request the session's server, nil if there is no session, and the
// flags that were agreed on. Who got one leaves.
func (s *session) enter() (*fuse.ProtocolServer, uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase != opened {
		return nil, 0
	}
	s.busy++
	return s.server, s.flags
}

func (s *session) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy--; s.busy == 0 && s.idle != nil {
		close(s.idle)
		s.idle = nil
	}
}

// halt is the beginning of a reset: requests that wait end, and no session begins
// before resume.
func (s *session) halt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.halted = true
	s.cancel()
}

func (s *session) resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.halted = false
}

// cancel has requests that wait end. It is called under s.mu.
func (s *session) cancel() {
	if s.over != nil && !s.told {
		close(s.over)
		s.told = true
	}
}

// end ends the session and reports whether there was one: no other request enters,
// those that wait are cancelled, and when none is in flight any more the file
// system is reset.
func (s *session) end() bool {
	s.mu.Lock()
	if s.phase != opened {
		s.mu.Unlock()
		return false
	}
	s.phase = ending
	s.cancel()
	var idle chan struct{}
	if s.busy > 0 {
		idle = make(chan struct{})
		s.idle = idle
	}
	s.mu.Unlock()
	if idle != nil {
		<-idle
	}
	s.fsys.Reset()
	s.mu.Lock()
	s.phase, s.server = closed, nil
	s.mu.Unlock()
	return true
}

// ends is closed when the session is to end. It is for who has entered.
func (s *session) ends() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.over
}

func (s *session) isOpen() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.phase == opened
}

// patient is a file system whose blocking locks end with the session, which the
// library has no word for.
type patient struct {
	fuse.RawFileSystem
	over <-chan struct{}
}

// SetLkw waits for a lock, until it is interrupted or the session ends.
func (p *patient) SetLkw(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	either, done := make(chan struct{}), make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-cancel:
		case <-p.over:
		case <-done:
			return
		}
		close(either)
	})
	defer watch.Wait()
	defer close(done)
	return p.RawFileSystem.SetLkw(either, in)
}
