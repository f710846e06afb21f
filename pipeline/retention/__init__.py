"""The store keeps house: what holds a result, what takes room, what may go, what is damaged; nothing is made here."""
