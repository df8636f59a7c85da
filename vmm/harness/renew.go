package harness

import "time"

// renewPause is between two times that the guest is told to drop its names.
const renewPause = 50 * time.Millisecond

// rootChanged is called when names of the root lead elsewhere than the guest may
// remember.
func (m *Machine) rootChanged() {
	select {
	case m.changed <- struct{}{}:
	default: // it will be told
	}
}

// renew tells the guest of it.
func (m *Machine) renew() {
	for {
		select {
		case <-m.quit:
			return
		case <-m.vm.Done():
			return
		case <-m.changed:
		}
		if m.guest.Renew() != nil {
			m.rootChanged() // the agent has no connection yet, or the end is near
		}
		select {
		case <-m.quit:
			return
		case <-m.vm.Done():
			return
		case <-time.After(renewPause):
		}
	}
}
