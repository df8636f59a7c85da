package vsock

import "time"

// UnixConns is how many connections with a Unix socket there are in all devices, and
// SetMostUnixConns bounds them for those of one device.
func UnixConns() int64 { return unixConns.Load() }

func (d *Device) SetMostUnixConns(n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unix.most = n
}

// NewTimed is New with other bounds for waits.
func NewTimed(o Options, connect, greeting, linger time.Duration) (*Device, error) {
	return newDevice(o, times{connect: connect, greeting: greeting, linger: linger})
}

// Waiting is how many connections and resets are in line.
func (d *Device) Waiting() int { return int(d.waiting.Load()) }

// MoreResets is how many resets may wait besides one for each connection.
const MoreResets = moreResets
