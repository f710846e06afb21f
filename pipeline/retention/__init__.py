"""The store keeps house: what holds a result, takes room, may go, is damaged, is kept as good; nothing is made here."""
