// Package net is the virtio network device and the host's ends for it.
//
// The device follows VIRTIO 1.2, section 5.1 (Network Device).
package net
