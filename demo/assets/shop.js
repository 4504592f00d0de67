// The shop's own script: live prices, news, the cart's size and the photo upload. Knows only the shop.
'use strict';

const stock = () => {
  if (!document.querySelector('form[action="/logout"]')) return; // prices move for customers only
  const socket = new WebSocket(`${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}/ws/stock`);
  socket.onmessage = ({data}) => {
    const {article, cents} = JSON.parse(data);
    for (const price of document.querySelectorAll(`.price[data-article="${article}"]`)) {
      price.textContent = `${(cents / 100).toFixed(2)} €`;
    }
  };
};

const news = () => {
  const line = document.getElementById('news');
  if (line) new EventSource('/events').addEventListener('news', ({data}) => { line.textContent = data; });
};

const cart = async () => {
  const line = document.getElementById('cart-line');
  if (!line) return;
  const answer = await fetch('/api/cart');
  if (answer.status === 401) return location.assign('/login');
  const pieces = Object.values(await answer.json()).reduce((sum, n) => sum + n, 0);
  line.textContent = `${pieces} things in your cart.`;
};

const photo = () => {
  document.getElementById('photo')?.addEventListener('change', async ({target}) => {
    const answer = await fetch('/account/photo', {method: 'PUT', body: target.files[0]});
    document.getElementById('received').textContent = answer.ok ? `${(await answer.json()).bytes} bytes received` : 'failed';
  });
};

stock();
news();
cart();
photo();
